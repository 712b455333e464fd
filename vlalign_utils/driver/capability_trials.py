"""Capability trials: find out what a model allows by trying it once, alike for every family."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlalign_utils.driver.capabilities import MEANINGS, Capabilities, Finding
from vlalign_utils.driver.driver import Driver
from vlalign_utils.driver.edits import CrossOff, Edit, FreezeTokens, Knockout, Patch, tokens_first
from vlalign_utils.driver.finite import NotFiniteError
from vlalign_utils.driver.image_positions import other_pixels, pixels
from vlalign_utils.driver.kv_cache import largest_cut
from vlalign_utils.driver.padding import attended_tokens, single_row
from vlalign_utils.driver.recording import Run

ALONE = 6  # tokens of each row that are cut off from all others


@torch.no_grad()
def probe(vlm: Driver, inputs: Mapping[str, Any]) -> Capabilities:
    """Run every trial on one batch with images.

    Raises ValueError for inputs without pixels, and NotFiniteError where the model gives NaN or infinity,
    also for one row of the batch alone.
    """
    if not pixels(inputs):
        raise ValueError("capabilities are found on inputs with an image; these hold no pixels")
    model = type(vlm.model).__name__
    run = vlm.record(**inputs)
    try:
        vlm.self_test(run)
    except RuntimeError as error:
        findings = dict.fromkeys(MEANINGS, Finding(None, "the replay is not exact"))
        findings["replay"] = Finding(False, str(error))
        return Capabilities(model=model, whole_from=vlm.n_layers + 1, **findings)
    other = vlm.record(**{**inputs, **other_pixels(inputs)})
    image = vlm.image_mask(inputs, run)
    where = None if image is None or not image.any() else image
    seen = attended_tokens(run.inputs, run.grid, where)
    whole_from = _whole_from(vlm, run, other)
    return Capabilities(
        model,
        Finding(True, "difference 0.0"),
        _image_positions(vlm, image),
        _whole_state(whole_from, vlm.n_layers),
        _causal(vlm, run, where, seen),
        _padding(vlm, inputs, run, seen),
        _freeze(vlm, run, where),
        _knockout(vlm, run, other, where, seen),
        _cross_off(vlm, run, other, where, seen),
        _rows(vlm, run),
        _suffix(vlm, inputs, where),
        whole_from,
    )


def _last(mask: Tensor) -> Tensor:
    """Last selected position of each row."""
    return mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)


def _image_positions(vlm: Driver, image: Tensor | None) -> Finding:
    if image is None:
        return Finding(False, "the image is reached by cross-attention")
    if not image.any():
        return Finding(False, "pixels change nothing that enters the first layer")
    found = "declared by token ids" if vlm.image_source == "ids" else "found by changing the pixels"
    return Finding(True, found)


def _whole_from(vlm: Driver, run: Run, other: Run) -> int:
    """Lowest layer from which exchanging the stream exchanges the logits; n_layers + 1 where none does."""

    def swapped(k: int) -> bool:
        return torch.equal(vlm.replay(run, start=k, hidden=other.resid[k]).logits, other.logits)

    low, high = 0, vlm.n_layers + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if swapped(middle) else (middle + 1, high)
    return low


def _whole_state(whole_from: int, n_layers: int) -> Finding:
    if whole_from == 0:
        return Finding(True, "from the first layer")
    if whole_from > n_layers:
        return Finding(False, "something else reaches the head")
    return Finding(False, f"only from layer {whole_from} of {n_layers}: something else reaches those below")


def _causal(vlm: Driver, run: Run, image: Tensor | None, attended: Tensor) -> Finding:
    for what, mask in (("image", image), ("text", attended)):
        if mask is None:
            continue
        last = _last(mask)
        moved = vlm.replay(run, edits=[Patch(0, last, _noise(run.resid[0]))])
        before = (last.flip(-1).cumsum(-1).flip(-1) > 0) & ~last & attended
        end, was = tokens_first(moved.resid[-1], run.grid), tokens_first(run.resid[-1], run.grid)
        # The order of sums may change with what else is in the batch; a token that sees another moves far.
        if before.any() and not _close(end[before], was[before]):
            return Finding(False, f"{what} tokens see later ones")
    return Finding(True, "an earlier token never changes with a later one")


def _padding(vlm: Driver, inputs: Mapping[str, Any], run: Run, attended: Tensor) -> Finding:
    mask = inputs.get("attention_mask")  # of an encoder, where there is one
    if attended.all() and (mask is None or mask.bool().all()):
        return Finding(None, "the trial held no padding")
    if not attended.all():
        moved = vlm.replay(run, edits=[Patch(0, ~attended, _noise(run.resid[0]))])
        if not _close(moved.logits[attended], run.logits[attended]):
            return Finding(False, "what padding holds reaches other tokens: use batches of equal length")
    largest = run.logits[attended].float().abs().max().item()
    tolerance = max(1e-3, torch.finfo(run.logits.dtype).eps ** 0.5) * largest  # experts may be chosen anew
    for row in range(run.grid[0]):
        alone = single_row(inputs, row)
        if alone is None:
            return Finding(None, "the trial's rows cannot be taken apart")
        try:
            logits = vlm.record(**alone).logits[0]
        except NotFiniteError:
            raise
        except (IndexError, ValueError) as reason:  # inputs that count through the batch
            return Finding(None, f"the trial's rows cannot be taken apart: {reason}")
        moves = _distance(logits, run.logits[row, -len(logits) :])
        if moves > tolerance:
            return Finding(
                False,
                f"a row in a padded batch moves by {moves:.2g} from the row alone (positions that count "
                "padding or other rows?): use batches of one",
            )
    return Finding(True, "a row in a padded batch is the row alone")


def _freeze(vlm: Driver, run: Run, image: Tensor | None) -> Finding:
    if image is None:
        return Finding(False, "there are no image tokens to hold")
    frozen = vlm.replay(run, edits=[FreezeTokens(0, vlm.n_layers - 1, image)])
    kept = tokens_first(run.resid[0], run.grid)[image]
    held = all(torch.equal(tokens_first(stream, run.grid)[image], kept) for stream in frozen.resid)
    return Finding(held, "held in every layer" if held else "the model changes them all the same")


def _knockout(vlm: Driver, run: Run, other: Run, image: Tensor | None, attended: Tensor) -> Finding:
    if image is None:
        return Finding(False, "there are no image tokens to hide: cut cross-attention with CrossOff")
    text = attended & ~image
    from_image = _cut(vlm, run, other, [Knockout(0, vlm.n_layers - 1, text, image)], text)
    return _alone(vlm, run, text) if from_image.works else from_image


def _alone(vlm: Driver, run: Run, text: Tensor) -> Finding:
    """Measure how much tokens cut off from all others still change with them.

    An attention that narrows its mask further may leave such a token nothing, and then give it everything.
    """
    rank = text.flip(-1).cumsum(-1).flip(-1) * text  # 1 for the last of a row
    isolated = [rank == place for place in range(1, min(ALONE, int(rank.amax(-1).min())) + 1)]
    others, end = ~torch.stack(isolated).any(0), vlm.n_layers - 1
    for first, last in sorted({(0, end), (end // 2, end // 2), (end, end)}):

        def leaving(*edits: Edit, slot: int = last + 1) -> Tensor:
            return tokens_first(vlm.replay(run, edits=edits).resid[slot], run.grid)[~others]

        cut: list[Edit] = [Knockout(first, last, one, ~one) for one in isolated]
        moved = Patch(first, others, _noise(run.resid[first]))
        uncut = _distance(leaving(), leaving(moved))
        left = _distance(leaving(*cut), leaving(*cut, moved))
        if left > torch.finfo(run.logits.dtype).eps ** 0.5 * uncut:
            where = f"tokens cut off from all others in layers {first} to {last}"
            return Finding(False, f"{where} keep {left / uncut:.2g} of the others' effect")
    return Finding(True, "nothing of what a token is cut off from reaches it")


def _cross_off(vlm: Driver, run: Run, other: Run, image: Tensor | None, attended: Tensor) -> Finding:
    if not vlm.anatomy.cross_attentions():
        return Finding(False, "there is no cross-attention")
    text = attended if image is None else attended & ~image
    edits: list[Edit] = [CrossOff(0, vlm.n_layers - 1)]
    if image is not None:
        edits.append(Knockout(0, vlm.n_layers - 1, text, image))
    cut, last = _cut(vlm, run, other, edits, text), _last(text)
    before = text & ~last
    if cut.works and before.any():
        moved: list[Edit] = [*edits, Patch(0, before, _noise(run.resid[0]))]
        with_others, without = (vlm.replay(run, edits=e).logits[last] for e in (edits, moved))
        if torch.equal(with_others, without):
            return Finding(False, "the tokens' own attention is cut with it: one module attends to both")
    return cut


def _cut(vlm: Driver, run: Run, other: Run, edits: Sequence[Edit], text: Tensor) -> Finding:
    """Measure how much other pixels still change the logits when all ways to the image are cut."""
    effect = _distance(run.logits[text], other.logits[text])
    if effect == 0:
        return Finding(None, "pixels change nothing here even without a cut")
    try:
        left = [vlm.replay(one, edits=edits).logits[text] for one in (run, other)]
    except ValueError as refusal:
        return Finding(False, str(refusal))
    leak = _distance(*left) / effect
    if leak <= torch.finfo(run.logits.dtype).eps ** 0.5:
        return Finding(True, f"nothing of the pixels' effect is left ({leak:.1g})")
    return Finding(False, f"{leak:.2g} of the pixels' effect is left when every way is cut")


def _rows(vlm: Driver, run: Run) -> Finding:
    works = vlm.runs_jointly(run, 0)
    return Finding(works, "sets of edits share a batch" if works else "sets of edits run one by one")


def _suffix(vlm: Driver, inputs: Mapping[str, Any], image: Tensor | None) -> Finding:
    run = vlm.record(kv_cache=True, **inputs)
    if run.kv_cache is None:
        return Finding(False, "keys and values of earlier tokens cannot be kept; every token runs")
    wanted = run.grid[1] // 2 if image is None else int(image.any(0).nonzero()[-1]) + 1
    seen = attended_tokens(run.inputs, run.grid, image)
    cut = largest_cut(run.kv_cache, run.grid[1], min(wanted, run.grid[1] - 1), seen)
    works = cut > 0 and vlm.runs_jointly(run, cut)
    return Finding(works, "only tokens from the first edited one run" if works else "every token runs")


def _noise(stream: Tensor) -> Tensor:
    noise = torch.randn(stream.shape, generator=torch.Generator().manual_seed(1))
    return stream + noise.to(stream) * stream.float().std().to(stream)


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = torch.finfo(b.dtype).eps ** 0.5 * b.float().abs().max().item()
    return _distance(a, b) <= tolerance
