"""Images of stage `vision` and their regions, as one model's batches or two's."""

from types import SimpleNamespace

import numpy as np
import torch

from vlalign_utils.data.things.splits import HELD_OUT_STYLE, held_out_things, trained_things
from vlalign_utils.tuning.train_loop import Schedule
from vlalign_utils.zoo import naming_data

SCHEDULE = Schedule(steps=3, batch_size=4, lr=0.1)


def processor(scale):
    """Pixels as they are, times `scale`."""

    def process(images, return_tensors):
        assert all(len(group) == 1 for group in images)
        values = np.stack([np.asarray(image) for (image,) in images]).transpose(0, 3, 1, 2)
        return {"pixel_values": torch.from_numpy(values) * scale}

    return SimpleNamespace(image_processor=process)


def test_both_models_are_shown_the_same_images():
    batches = list(naming_data.naming_batches(processor(1.0), 96, 2, SCHEDULE, 0, teacher=processor(2.0)))
    assert len(batches) == 3
    for batch in batches:
        assert batch["pixel_values"].shape == (4, 3, 96, 96)
        assert torch.equal(batch["teacher_pixels"], 2 * batch["pixel_values"])
        assert batch["cells"].shape == (len(batch["word"]), 4)
        assert set(batch["image"].tolist()) == {0, 1, 2, 3}


def test_a_step_gets_the_same_batch_however_the_run_is_cut_and_processes_share_it():
    whole = list(naming_data.naming_batches(processor(1.0), 96, 2, SCHEDULE, 0))
    (last,) = naming_data.naming_batches(processor(1.0), 96, 2, SCHEDULE, 0, first=2)
    assert "teacher_pixels" not in last
    assert all(torch.equal(last[name], whole[2][name]) for name in last)
    halves = [
        next(naming_data.naming_batches(processor(1.0), 96, 2, SCHEDULE, 0, share=slice(rank, None, 2)))
        for rank in (0, 1)
    ]
    for rank, half in enumerate(halves):
        assert torch.equal(half["pixel_values"], whole[0]["pixel_values"][rank::2])
    other = next(naming_data.naming_batches(processor(1.0), 96, 2, SCHEDULE, 1))
    assert not torch.equal(other["pixel_values"], whole[0]["pixel_values"])


def test_nothing_that_is_held_out_is_shown(monkeypatch):
    shown = []
    render = naming_data.render
    monkeypatch.setattr(naming_data, "render", lambda scene, side: shown.append(scene) or render(scene, side))
    for seed in range(100):
        naming_data.draw(np.random.default_rng(seed), 96)
    placed = [item for scene in shown for item in scene.placed]
    assert len(placed) > 100
    assert not {item.thing for item in placed} & set(held_out_things())
    assert HELD_OUT_STYLE not in {item.style for item in placed}
    assert naming_data.sizes()[naming_data.NAMES] == len(trained_things())
