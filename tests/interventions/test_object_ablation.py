from functools import cache

import numpy as np
import pytest
import torch

from vlalign_utils import VLM
from vlalign_utils.data.minimal_pairs import minimal_pairs
from vlalign_utils.inference.scoring import answer_scores, batches
from vlalign_utils.interventions import image_grid, object_ablation
from vlalign_utils.interventions.object_ablation import (
    ABLATED,
    BUFFER,
    NORM,
    OBJECT,
    RANDOM,
    RANDOM_BUFFER,
)
from vlalign_utils.paths import ROOT
from vlalign_utils.zoo.architecture import build_model, build_processor, build_tokenizer_for
from vlalign_utils.zoo.recipe import read_recipe

GRID = 6
SQUARE = np.arange(GRID**2).reshape(GRID, GRID)


@cache
def untrained(chain: str) -> VLM:
    recipe = read_recipe(ROOT / "zoo" / "recipes" / f"{chain}.yml")
    tokenizer = build_tokenizer_for(recipe)
    model, processor = build_model(recipe, tokenizer, 0).eval(), build_processor(recipe, tokenizer)
    return VLM(model, processor)


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return untrained("llava")


def naive_cells(pixels: np.ndarray) -> set[int]:
    return {
        (y * GRID // 48) * GRID + x * GRID // 48 for y in range(48) for x in range(48) if pixels[y, x] >= 0.5
    }


def naive_buffer(cells: set[int]) -> set[int]:
    near = set()
    for cell in cells:
        for y in range(cell // GRID - 1, cell // GRID + 2):
            for x in range(cell % GRID - 1, cell % GRID + 2):
                if 0 <= y < GRID and 0 <= x < GRID:
                    near.add(y * GRID + x)
    return near


def test_cells_are_those_of_a_loop_over_pixels() -> None:
    for pair in minimal_pairs(8):
        pixels = pair.covered
        shown = image_grid.tokens_showing(pixels >= 0.5, [SQUARE])
        assert set(shown.nonzero()[0]) == naive_cells(pixels)
        near = image_grid.with_neighbours(shown, [SQUARE])
        assert set(near.nonzero()[0]) == naive_buffer(naive_cells(pixels))


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["llava", "qwen3vl", "idefics3"])
def test_the_grid_is_found_by_trying(chain: str) -> None:
    (grid,) = image_grid.image_grids(untrained(chain), 48)
    assert np.array_equal(grid, SQUARE)


@pytest.mark.slow
@pytest.mark.slow
def test_tokens_that_are_no_grid_are_refused(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image_grid._entering
    turned = torch.arange(GRID**2).reshape(GRID, GRID).T.flatten()  # columns first
    monkeypatch.setattr(image_grid, "_entering", lambda vlm, images: [t[turned] for t in whole(vlm, images)])
    with pytest.raises(
        ValueError, match=r"as a square grid, row by row, or as tiles of one: only \d+% of the cells"
    ):
        image_grid.image_grids(vlm, 48)
    monkeypatch.setattr(image_grid, "_entering", lambda vlm, images: [t[1:] for t in whole(vlm, images)])
    with pytest.raises(ValueError, match="makes 35 tokens of an image: they are no square grid"):
        image_grid.image_grids(vlm, 48)


@pytest.mark.slow
def test_a_picture_without_positions_has_no_grid() -> None:
    with pytest.raises(ValueError, match="does not allow image_positions"):
        image_grid.image_grids(untrained("mllama"), 48)


def test_controls_are_as_large_and_show_nothing_of_the_thing() -> None:
    image = torch.zeros(2, 40, dtype=torch.bool)
    image[:, 2:38] = True
    shown = [np.isin(np.arange(36), [7, 8]), np.isin(np.arange(36), [0, 1, 6])]
    entering = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
    entering[0, 2 + 7] = 100.0  # of the thing itself, and padding: neither is a control
    entering[:, 0] = 100.0
    found = object_ablation.ablated(image, shown, [SQUARE], entering, [4, 9])
    assert list(found) == list(ABLATED)
    assert [m.nonzero().flatten().tolist() for m in found[OBJECT]] == [[9, 10], [2, 3, 8]]
    for row, cells in enumerate(shown):
        buffer = {2 + c for c in naive_buffer(set(cells.nonzero()[0].tolist()))}
        assert set(found[BUFFER][row].nonzero().flatten().tolist()) == buffer
        for name, size in ((RANDOM, cells.sum()), (NORM, cells.sum()), (RANDOM_BUFFER, len(buffer))):
            assert found[name][row].sum() == size
            assert not (found[name][row] & (found[OBJECT][row] | ~image[row])).any()
        free = [i for i in range(2, 38) if not cells[i - 2]]
        largest = sorted(free, key=lambda i: -entering[row, i].norm().item())[: cells.sum()]
        assert set(found[NORM][row].nonzero().flatten().tolist()) == set(largest)


@torch.no_grad()
@pytest.mark.usefixtures("all_solved")
def test_ablation_equals_plain_hooks(vlm: VLM) -> None:
    pairs = minimal_pairs(5)
    swept = object_ablation.object_ablation(vlm, pairs, seed=2, batch_size=3)
    items = [pair.item for pair in pairs]
    first = vlm.model.model.language_model.layers[0]
    seen: list[torch.Tensor] = []
    handle = first.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    made = list(batches(vlm, items, 3))
    for batch in made:
        vlm.model(**batch.inputs)
    handle.remove()
    images = [batch.inputs["input_ids"] == vlm.model.config.image_token_index for batch in made]
    mean = torch.cat([s[m] for s, m in zip(seen, images, strict=True)]).mean(0)
    for batch, image in zip(made, images, strict=True):
        for name, grow in ((OBJECT, set), (BUFFER, naive_buffer)):
            mask = torch.zeros_like(image)
            for row, item in enumerate(batch.rows):
                cells = sorted(grow(naive_cells(pairs[item].covered)))
                mask[row, image[row].nonzero().flatten()[cells]] = True

            def write(module: object, args: tuple, mask: torch.Tensor = mask) -> tuple:
                return (torch.where(mask[..., None], mean, args[0]), *args[1:])

            handle = first.register_forward_pre_hook(write)
            scores = answer_scores(vlm.model(**batch.inputs).logits, batch.answers)
            handle.remove()
            assert swept.prob[name][batch.rows, 0] == pytest.approx(scores.prob, rel=1e-4)


@pytest.mark.slow
def test_the_mean_reaches_as_far_as_the_model_adds_to_image_tokens() -> None:
    deep = untrained("qwen3vl")
    whole = deep.capabilities().whole_from
    assert whole > 0
    items = [pair.item for pair in minimal_pairs(3)]
    means = object_ablation.mean_image_states(deep, items, whole, 2)
    assert means.shape == (whole + 1, deep.d_model)
    streams = []
    for item in items:
        inputs = deep.prepare([item.prompt], [item.image], [item.answer])
        image = inputs["input_ids"] == deep.model.config.image_token_id
        streams.append([deep.prefix(inputs, k)[image] for k in range(whole + 1)])
    for k in range(whole + 1):
        assert torch.allclose(means[k], torch.cat([s[k] for s in streams]).mean(0), atol=1e-5)
