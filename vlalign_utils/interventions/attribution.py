"""Attribution patching: what each position of each layer would do if patched, estimated by one backward.

To first order, putting the stream of another image into a position changes a number by the gradient of that
number there, times the difference of the two streams. The number is a *contrast*: the logit of the item's own
answer minus that of the donor's, at the first token in which they differ. Unlike a probability it does not
saturate where the model is sure. Sources: Nanda 2023, attribution patching; Kramár et al. 2024, AtP*,
arXiv 2403.00745.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlalign_utils.data.items import Item
from vlalign_utils.driver.edits import Patch, tokens_first
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference.answers import answer_tokens
from vlalign_utils.inference.progress import progress
from vlalign_utils.inference.scoring import Batch, as_batch, evaluation_batches
from vlalign_utils.interventions.patching import WHERE, check_donors
from vlalign_utils.interventions.sweep import Mask, positions


class Contrast(NamedTuple):
    """Where a batch's two answers part: the position that is read there, and the two tokens, by item."""

    position: Int[Tensor, " batch"]
    own: Int[Tensor, " batch"]
    other: Int[Tensor, " batch"]

    def of(self, logits: Float[Tensor, "batch tokens vocabulary"]) -> Float[Tensor, " batch"]:
        """Logit of the own answer minus that of the other; positions count from the right."""
        rows = torch.arange(len(self.own), device=logits.device)
        at = logits[rows, self.position]
        return at.gather(1, self.own[:, None])[:, 0] - at.gather(1, self.other[:, None])[:, 0]


@dataclass(frozen=True)
class Attribution:
    """Estimated losses of contrast, in logits: positive where the donor's stream takes from the own answer.

    `clean` is the contrast without a patch. `loss` has, by group of positions, the estimate of patching the
    whole group in one slot; `by_token` for each item that of every single position, as the model sees them,
    padding left out. Slots count as in a record.
    """

    clean: Float[np.ndarray, " items"]
    loss: dict[str, Float[np.ndarray, "items slots"]]
    by_token: list[Float[np.ndarray, "slots _"]]


@dataclass(frozen=True)
class Checked:
    """Losses of contrast of single positions, `cells` of an item, estimated and measured by patching."""

    estimated: Float[np.ndarray, "items cells"]
    measured: Float[np.ndarray, "items cells"]


def attribution_sweep(
    vlm: VLM,
    items: Sequence[Item],
    donors: Sequence[Item],
    where: Sequence[str] = WHERE,
    seed: int = 0,
    batch_size: int = 16,
    label: str = "batches",
) -> Attribution:
    """Estimate what patching the donor's stream does, in every slot at every position.

    Two forwards and one backward for a batch, whatever the number of layers and positions. A group in which
    images take no positions (cross-attention) has losses of 0.

    Args:
        vlm: a model with its processor.
        items: questions about images, right or wrong.
        donors: the same questions about other images of equal size, with other answers, one for each item.
        where: groups of positions, fields of `Positions`.
        seed: of the groups that are drawn.
        batch_size: items of one forward; its residual streams and their gradients are held at once.
        label: of the progress bar.

    Raises ValueError for donors that do not fit their items, as `exchange_sweep` does.

    Example:
        >>> from vlalign_utils import load_vlm
        >>> from vlalign_utils.data.minimal_pairs import minimal_pairs
        >>> pairs = minimal_pairs(4)
        >>> vlm = load_vlm("zoo/llava")
        >>> found = attribution_sweep(vlm, [pair.item for pair in pairs], [pair.other for pair in pairs])
        >>> found.loss["image"].shape, len(found.by_token)
        ((4, 9), 4)
    """
    check_donors(items, donors, where)
    shape = len(items), vlm.n_layers + 1
    clean, loss = np.zeros(len(items)), {name: np.zeros(shape) for name in where}
    by_token: list[Float[np.ndarray, "slots _"]] = [np.zeros((0, 0))] * len(items)
    for batch in progress(list(evaluation_batches(vlm, items, batch_size)), label):
        run, other, contrast = _runs(vlm, items, donors, batch)
        at = positions(vlm, run, batch, seed)
        clean[batch.rows] = _numbers(contrast.of(run.logits))
        lost = _estimate(vlm, run, other, contrast)
        for name in where:
            loss[name][batch.rows] = _numbers(
                torch.stack([(own * getattr(at, name)).sum(1) for own in lost], 1)
            )
        own_tokens = _seen(run)
        for i, row in enumerate(batch.rows):
            by_token[row] = _numbers(torch.stack([own[i, own_tokens[i]] for own in lost]))
    return Attribution(clean, loss, by_token)


def check_attribution(
    vlm: VLM,
    items: Sequence[Item],
    donors: Sequence[Item],
    cells: int = 24,
    seed: int = 0,
    batch_size: int = 16,
    label: str = "batches",
) -> Checked:
    """Patch some positions in earnest, drawn at random over all slots and positions, and estimate them too.

    Positions whose stream is the donor's anyway are not drawn: patching them changes nothing by construction.
    The rank correlation of the two is what an estimate is worth on this model.

    Args:
        vlm, items, donors, batch_size, label: as in `attribution_sweep`.
        cells: patches of each item.
        seed: of the draw.

    Raises ValueError as `attribution_sweep` does, and for an item whose donor differs in fewer positions.
    """
    check_donors(items, donors, ())
    estimated, measured = np.zeros((len(items), cells)), np.zeros((len(items), cells))
    for batch in progress(list(evaluation_batches(vlm, items, batch_size)), label):
        run, other, contrast = _runs(vlm, items, donors, batch)
        clean = contrast.of(run.logits)
        lost = torch.stack(_estimate(vlm, run, other, contrast), 1)
        slots, tokens = _draw(run, other, batch.rows, cells, seed)
        rows = torch.arange(len(batch.rows))
        estimated[batch.rows] = _numbers(lost.cpu()[rows[:, None], slots, tokens])
        for cell in range(cells):
            edits = []
            for slot in slots[:, cell].unique().tolist():
                chosen = torch.zeros(run.grid, dtype=torch.bool)
                chosen[rows, tokens[:, cell]] = slots[:, cell] == slot
                edits.append(Patch(slot, chosen.to(run.resid[0].device), other.resid[slot]))
            with torch.no_grad():
                patched = contrast.of(vlm.replay(run, edits=edits).logits)
            measured[batch.rows, cell] = _numbers(clean - patched)
    return Checked(estimated, measured)


def _runs(vlm: VLM, items: Sequence[Item], donors: Sequence[Item], batch: Batch) -> tuple[Run, Run, Contrast]:
    """Records of a batch and of its donors, and where their answers part."""
    inputs: dict[str, Any] = {**batch.inputs}
    given = [replace(donor, answer=item.answer) for item, donor in zip(items, donors, strict=True)]
    others: dict[str, Any] = as_batch(vlm, given, batch.rows).inputs
    if not torch.equal(others["input_ids"], inputs["input_ids"]):
        raise ValueError("a donor takes other positions than its item's image: give one of equal size")
    chosen = [(items[row], donors[row].answer) for row in batch.rows]
    return vlm.record(**inputs), vlm.record(**others), _contrast(vlm, chosen, batch)


def _contrast(vlm: VLM, chosen: Sequence[tuple[Item, str]], batch: Batch) -> Contrast:
    found = []
    for i, (item, answer) in enumerate(chosen):
        own, other = answer_tokens(vlm, item.prompt, item.image is not None, [item.answer, answer])
        place = next((k for k, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), None)
        if place is None:
            raise ValueError(f"the answers {item.answer!r} and {answer!r} do not part in any token")
        first = int((batch.answers[i] >= 0).int().argmax()) - batch.answers.shape[1]
        found.append((first + place - 1, own[place], other[place]))
    return Contrast(*torch.tensor(found, device=batch.answers.device).unbind(1))


def _estimate(vlm: VLM, run: Run, other: Run, contrast: Contrast) -> list[Float[Tensor, "batch tokens"]]:
    """Estimated loss of contrast of every position, by slot."""
    with torch.enable_grad():
        hidden = run.resid[0].detach().clone().requires_grad_()
        replay = vlm.replay(run, hidden=hidden)
        gradients = torch.autograd.grad(contrast.of(replay.logits).sum(), replay.resid)
    lost = []
    for own, donor, gradient in zip(run.resid, other.resid, gradients, strict=True):
        change = tokens_first((donor - own) * gradient, run.grid).float()
        lost.append(-change.flatten(2).sum(-1))
    return lost


def _seen(run: Run) -> Bool[np.ndarray, "batch tokens"]:
    """Positions that are no padding."""
    mask = run.inputs.get("attention_mask")
    seen: Bool[np.ndarray, "batch tokens"] = (
        np.ones(run.grid, dtype=bool) if mask is None else mask.bool().cpu().numpy()
    )
    return seen


def _draw(
    run: Run, other: Run, rows: Sequence[int], cells: int, seed: int
) -> tuple[Int[Tensor, "batch cells"], Int[Tensor, "batch cells"]]:
    """Slots and positions at which the two streams differ, drawn without repetition for each item."""
    apart: Mask = torch.stack(
        [
            tokens_first(a != b, run.grid).flatten(2).any(-1)
            for a, b in zip(run.resid, other.resid, strict=True)
        ],
        1,
    ).cpu()
    found = []
    for row, places in zip(rows, apart, strict=True):
        possible = places.nonzero()
        if len(possible) < cells:
            raise ValueError(
                f"item {row} and its donor differ in {len(possible)} states: fewer than {cells} cells"
            )
        found.append(possible[rng(seed, f"cells {row}").choice(len(possible), cells, replace=False)])
    slots, tokens = torch.stack(found).unbind(-1)
    return slots, tokens


def _numbers(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
