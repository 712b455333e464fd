import itertools

import numpy as np
import pytest
import torch

from vlalign_utils.data.kinds import KINDS, Region
from vlalign_utils.data.render import SIDE
from vlalign_utils.paths import ROOT
from vlalign_utils.tuning.trainable import trainable
from vlalign_utils.zoo import vision_stage
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe
from vlalign_utils.zoo.stages import trained_parts

GRID = 6


@pytest.fixture(scope="module")
def parts():
    recipe = read_recipe(ROOT / "zoo" / "recipes" / "llava.yml")
    tokenizer = build_tokenizer_for(recipe)
    return recipe, build_model(recipe, tokenizer, 0), build_processor(recipe, tokenizer)


@pytest.mark.slow
def test_kinds_come_in_the_proportion_of_their_shares():
    shown = vision_stage.draw(4000, np.random.default_rng(0))
    for kind in KINDS.values():
        assert sum(k is kind for k, _ in shown) / 4000 == pytest.approx(kind.share, abs=0.03)


def test_regions_name_what_is_brightest_in_them(parts):
    _, _, processor = parts
    batch = next(vision_stage.naming_batches(processor, GRID, 40, 1, seed=0))
    assert torch.allclose(batch["cells"].sum(1), torch.ones(len(batch["cells"])))
    patches = SIDE // GRID
    for image, cells in zip(batch["image"], batch["cells"], strict=True):
        pixels = batch["pixels"]["pixel_values"][image]
        bright = pixels.reshape(3, GRID, patches, GRID, patches).amax((0, 2, 4)).flatten()
        assert bright[cells > 0].max() > -0.1  # a thing is brighter than any background


def test_every_word_of_a_region_is_a_target_along_its_axis(parts):
    _, _, processor = parts
    rng = np.random.default_rng([0, 0])
    shown = vision_stage.draw(40, rng)
    regions = [(kind, region) for kind, subject in shown for region in kind.regions(subject)]
    batch = next(vision_stage.naming_batches(processor, GRID, 40, 1, seed=0))
    said = [[] for _ in regions]
    for (_, axis), rows, target in zip(vision_stage.AXES, batch["rows"], batch["targets"], strict=True):
        for row, word in zip(rows.tolist(), target.tolist(), strict=True):
            said[row].append(axis[word])
    assert said == [list(region.words) for _, region in regions]


def test_a_step_gets_the_same_batch_however_the_run_is_cut_and_processes_share_it(parts):
    _, _, processor = parts
    whole = list(vision_stage.naming_batches(processor, GRID, 6, 4, seed=1))
    rest = list(vision_stage.naming_batches(processor, GRID, 6, 4, seed=1, first=2))
    for one, other in zip(itertools.islice(whole, 2, None), rest, strict=True):
        assert torch.equal(one["pixels"]["pixel_values"], other["pixels"]["pixel_values"])
    halves = [
        next(vision_stage.naming_batches(processor, GRID, 6, 1, seed=1, share=slice(rank, None, 2)))
        for rank in (0, 1)
    ]
    pixels = whole[0]["pixels"]["pixel_values"]
    assert all(torch.equal(h["pixels"]["pixel_values"], pixels[i::2]) for i, h in enumerate(halves))


def test_a_region_between_tokens_is_refused():
    with pytest.raises(ValueError, match="holds the middle of no token of 2 x 2"):
        vision_stage._cells(Region(0, 0, 4, 48, ("red", "two")), 2)


@pytest.mark.slow
def test_naming_is_learnt_from_pixels(parts):
    recipe, model, processor = parts
    task = vision_stage.RegionNaming(model, recipe)
    batch = next(
        vision_stage.naming_batches(
            processor, vision_stage.grid_side(model, recipe, processor), 16, 1, seed=0
        )
    )
    own = [p for part in trained_parts("vision", model, recipe) for p in part.parameters()]
    losses = []
    with trainable(model, own):
        optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(30):
            loss = task(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for name, p in model.named_parameters() if "language_model" in name)
