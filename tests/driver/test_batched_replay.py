"""Many edits of one run at once, against full forwards that apply them one at a time."""

import pytest
import torch
from tiny_models import Inputs, build, each_family, image_noise
from torch import Tensor

from vlalign_utils import VLM, FreezeTokens, Knockout, Patch, Revert, Run
from vlalign_utils.driver import batched_replay, recording
from vlalign_utils.driver.edits import Edit


def at(run: Run, *tokens: int) -> Tensor:
    mask = torch.zeros(run.grid, dtype=torch.bool)
    mask[:, list(tokens)] = True
    return mask


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def batch_of(inputs: Inputs, size: int) -> Inputs:
    """The first row, repeated with other pixels."""
    inputs = {name: value[1:].repeat(size, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    return {**inputs, "pixel_values": image_noise(*inputs["pixel_values"].shape)}


def sets_of(run: Run) -> list[list[Edit]]:
    batch, tokens = run.grid
    image, last = at(run, 4, 5, 6, 7), at(run, tokens - 1)
    return [
        [],
        [Patch(4, last, noise(32))],
        [Patch(2, at(run, 9, 11), noise(2 * batch, 32))],
        [Patch(1, at(run, 10), noise(batch, tokens, 32)), FreezeTokens(2, 3, at(run, 12))],
        [FreezeTokens(0, 2, image), Patch(1, at(run, 5), noise(1, tokens, 32))],
        [Knockout(1, 2, last, image), Knockout(2, 3, at(run, 11), at(run, 3, 10))],
        [Knockout(0, 3, at(run, 8, 9), image), Patch(3, last, noise(32))],
    ]


@torch.no_grad()
@pytest.mark.slow_except("1-1-2", "40-3-14", "None-14-4", "None-None-1", "40-1-3")
@pytest.mark.parametrize("size", [1, 2, 3, 4, 14])
@pytest.mark.parametrize("keep", [1, 3, 14, None])
@pytest.mark.parametrize("budget", [1, 40, None])
def test_rows_equal_full_forwards_for_every_batch(size: int, keep: int | None, budget: int | None) -> None:
    """Also where the batch is as large as the number of heads, or of tokens."""
    vlm, inputs = build("llava")
    inputs = batch_of(inputs, size)
    run = vlm.record(kv_cache=True, **inputs)
    sets = sets_of(run)
    found = dict(vlm.replays(run, sets, keep, budget))
    assert vlm._joint[False] if keep in (14, None) else vlm._joint[True]
    for i, edits in enumerate(sets):
        whole = recording.forward(vlm.anatomy, inputs, edits).logits
        expected = whole if keep is None else whole[:, -keep:]
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5 * whole.abs().max().item())


@torch.no_grad()
@each_family
def test_each_family_gives_what_its_full_forward_gives(family: str) -> None:
    vlm, inputs = build(family)
    run = vlm.record(kv_cache=True, **inputs)
    sets = [[Patch(k, at(run, 8, 13), 0.5 * noise(32))] for k in range(5)]
    for i, logits in vlm.replays(run, sets, keep=2):
        expected = recording.forward(vlm.anatomy, inputs, sets[i]).logits[:, -2:]
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_a_row_begins_at_its_lowest_layer_and_its_first_token() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(kv_cache=True, **inputs)
    edits: list[Edit] = [Patch(3, at(run, 12), noise(32)), FreezeTokens(1, 2, at(run, 10, 13))]
    row = batched_replay.locate(0, edits, run, 4, keep=1)
    assert (row.start, row.cut) == (1, 10)
    assert batched_replay.locate(0, edits, run, 4, keep=6).cut == 8  # the tokens to be read
    assert batched_replay.locate(0, edits, run, 4, keep=None).cut == 0
    assert (
        batched_replay.locate(0, edits, vlm.record(**inputs), 4, keep=1).cut == 0
    )  # no keys of the tokens before
    assert batched_replay.locate(0, [], run, 4, keep=2).start == 4


def test_image_blocks_that_see_ahead_are_computed_whole() -> None:
    vlm, inputs = build("gemma3")
    run = vlm.record(kv_cache=True, **inputs)
    assert run.kv_cache is not None
    inside, behind = (
        batched_replay.locate(i, [Patch(1, at(run, token), noise(32))], run, 4, 1)
        for i, token in enumerate((6, 9))
    )
    ((first,), fits), ((second,), _) = batched_replay.plan(vlm.anatomy, run, [inside, behind], 10_000)
    assert (first.cut, second.cut, fits) == (4, 9, True)


def test_only_the_tokens_after_an_edit_run_again() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(kv_cache=True, **inputs)
    sets = [[Patch(k, at(run, 11), noise(32))] for k in range(4)]
    list(vlm.replays(run, sets, keep=1))
    shapes: list[tuple[int, ...]] = []
    handle = vlm.layers[2].mlp.register_forward_hook(lambda m, args, output: shapes.append(output.shape))
    list(vlm.replays(run, sets, keep=1))
    handle.remove()
    assert shapes == [(3 * 2, 3, 32)]  # three rows of two items have joined; tokens 11 to 13


def test_what_cannot_be_shared_falls_back_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    vlm, inputs = build("lfm2_vl")
    with caplog.at_level("INFO", logger="vlalign"):
        run = vlm.record(kv_cache=True, **inputs)
    assert "every token runs in a sweep: layer 0 mixes tokens in another way" in caplog.text
    assert run.kv_cache is None
    assert [i for i, _ in vlm.replays(run, [[Patch(1, at(run, 9), noise(32))]], keep=1)] == [0]


def test_errors_are_those_of_replay() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(kv_cache=True, **inputs)
    with pytest.raises(IndexError, match="Patch layer is 5"):
        list(vlm.replays(run, [[], [Patch(5, at(run, 3), noise(32))]]))
    with pytest.raises(ValueError, match=r"keep is 15, expected 1\.\.14"):
        list(vlm.replays(run, [[]], keep=15))
    everything = torch.ones(run.grid, dtype=torch.bool)
    with pytest.raises(ValueError, match="without any key to attend to"):
        list(vlm.replays(run, [[Knockout(1, 1, at(run, 12), everything)]], keep=1))


def test_a_wrong_input_does_not_switch_sharing_off() -> None:
    vlm, inputs = build("llava")
    with pytest.raises(ValueError, match=r"."):
        vlm.record(kv_cache=True, **{**inputs, "pixel_values": inputs["pixel_values"][:1]})
    assert vlm.record(kv_cache=True, **inputs).kv_cache is not None


def other_stage(factor: float) -> VLM:
    vlm, _ = build("llava")
    with torch.no_grad():
        for parameter in vlm.layers.parameters():
            parameter.mul_(factor)
    return vlm


@torch.no_grad()
def test_of_overlapping_reverts_the_last_counts() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    edits: list[Edit] = [Revert(0, 2, other_stage(0.9).layers), Revert(1, 1, other_stage(0.8).layers)]
    expected = recording.forward(vlm.anatomy, inputs, edits).logits
    for _, logits in vlm.replays(run, [edits, edits], budget=10_000):
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_sets_may_come_from_a_generator() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs)
    found = vlm.replays(run, ([Patch(k, at(run, 9), noise(32))] for k in range(3)), keep=1)
    assert sorted(i for i, _ in found) == [0, 1, 2]


@torch.no_grad()
def test_keys_of_weights_that_have_changed_are_not_used() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(kv_cache=True, **inputs)
    sets: list[list[Edit]] = [[Patch(2, at(run, 13), noise(32))]]
    list(vlm.replays(run, sets, keep=1))
    for parameter in vlm.layers[2:].parameters():
        parameter.mul_(1.3)
    ((_, logits),) = vlm.replays(run, sets, keep=1)
    expected = vlm.replay(run, edits=sets[0]).logits[:, -1:]
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_a_run_of_another_model_or_with_streams_changed_in_place_is_refused() -> None:
    vlm, inputs = build("llava")
    other, _ = build("llava")
    run = vlm.record(**inputs)
    for call in (lambda: other.replay(run), lambda: other.replays(run, [[]])):
        with pytest.raises(ValueError, match="recorded by another model"):
            call()
    run.resid[2][:, -1] = 0
    for call in (lambda: vlm.replay(run), lambda: vlm.replays(run, [[]])):
        with pytest.raises(ValueError, match="changed in place: change a clone"):
            call()


def test_a_run_with_the_logits_of_some_tokens_is_refused() -> None:
    vlm, inputs = build("llava")
    run = vlm.record(**inputs, logits_to_keep=1)
    with pytest.raises(ValueError, match="record it without logits_to_keep"):
        vlm.replays(run, [[]], keep=1)
