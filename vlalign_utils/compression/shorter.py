"""Removal of whole layers: a gap, a matrix that stands for them, and a folder of the shorter model."""

import copy
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlalign_utils.compression.calibration import check_ran, module_of, real_tokens, rows, states_of
from vlalign_utils.compression.closed_form import ridge
from vlalign_utils.data.items import Item
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import as_batch
from vlalign_utils.interventions.submodule_removal import PARTS, removed
from vlalign_utils.paths import atomic_folder

STRENGTH = 1e-2  # of the ridge, a share of the outputs' mean square
LOOSE = 64  # times a rounding, how far logits of what was written may lie from those here


@torch.no_grad()
def least_gap(vlm: VLM, items: Sequence[Item], length: int, layers: Sequence[int]) -> int:
    """The first layer of the gap of so many layers that turns the stream least, by the mean cosine.

    Args:
        vlm: a model with its processor.
        items: questions with their answers, run as one batch; all have an image, or none.
        length: layers of the gap.
        layers: where it may lie.

    Raises ValueError when no gap fits, and as `check_ran` does.
    Source: ShortGPT (arXiv 2403.03853) and ReplaceMe (arXiv 2505.02819).
    """
    starts = [k for k in layers if {*range(k, k + length)} <= set(layers)]
    if not starts or length < 1:
        raise ValueError(f"a gap of {length} layers does not fit in {list(layers)}")
    inputs: dict[str, Any] = {**as_batch(vlm, items, range(len(items))).inputs}
    run, kept = vlm.record(stop=max(starts) + length, **inputs), real_tokens(inputs)
    check_ran(vlm, run, max(starts) + length)
    streams = {k: rows(run.resid[k], kept) for start in starts for k in (start, start + length)}

    def turned(start: int) -> float:
        likeness = torch.nn.functional.cosine_similarity(streams[start], streams[start + length], dim=-1)
        return float(1 - likeness.mean())

    return min(starts, key=turned)


@torch.no_grad()
def fit_replacement(
    vlm: VLM, items: Sequence[Item], first: int, length: int, strength: float = STRENGTH
) -> Float[Tensor, "width width"]:
    """The matrix that outputs of the MLP of layer `first - 1` are multiplied by, to stand for the gap.

    With M these outputs, S the stream that they are added to, and L the stream that leaves the gap, T
    minimises |S + MT - L|^2 + a |T|^2: a ridge regression of L - S on M.

    Raises ValueError for a gap that begins at layer 0 or leaves the model, for a layer before it that does
    not add what its MLP returns as it is (a norm stands between), and as `module_of` does.
    Source: ReplaceMe (arXiv 2505.02819).
    """
    if not 0 < first < first + length <= vlm.n_layers:
        raise ValueError(
            f"the gap [{first}, {first + length}) must lie within layers 1 to {vlm.n_layers - 1}"
        )
    inputs: dict[str, Any] = {**as_batch(vlm, items, range(len(items))).inputs}
    kept, given = real_tokens(inputs), list[Tensor]()
    module = module_of(vlm, (first - 1, "MLP"))
    handle = module.register_forward_hook(lambda m, a, output: given.append(states_of(output)))
    try:
        run = vlm.record(stop=first + length, **inputs)
    finally:
        handle.remove()
    check_ran(vlm, run, first + length)
    args, kwargs = run.calls[first - 1]
    with removed(vlm, first - 1, first - 1, PARTS["MLP"]):
        half = rows(states_of(vlm.layers[first - 1](*args, **kwargs)), kept)
    m, enters, leaves = (rows(s, kept) for s in (given[0], run.resid[first], run.resid[first + length]))
    error = (half + m - enters).abs().max() / enters.abs().max()
    if error > 4 * torch.finfo(vlm.model.dtype).eps:
        raise ValueError(
            f"layer {first - 1} does not add what its MLP returns as it is: the MLP cannot stand for the gap"
        )
    return ridge(m.T @ m, m.T @ (leaves - half), strength).to(vlm.model.dtype)


@contextmanager
def without_layers(
    vlm: VLM, first: int, length: int, matrix: Float[Tensor, "width width"] | None = None
) -> Iterator[VLM]:
    """Run the body with layers `first` to `first + length` adding nothing, and the MLP before multiplied.

    Raises IndexError for layers that are not there.
    """
    with removed(vlm, first, first + length - 1, PARTS["both"]):
        if matrix is None:
            yield vlm
            return
        product = matrix

        def multiplied(module: nn.Module, args: Any, output: Any) -> Any:
            states = states_of(output) @ product.to(states_of(output))
            return states if isinstance(output, Tensor) else (states, *output[1:])

        handle = module_of(vlm, (first - 1, "MLP")).register_forward_hook(multiplied)
        try:
            yield vlm
        finally:
            handle.remove()


def save_without_layers(
    vlm: VLM, folder: str | Path, first: int, length: int, matrix: Float[Tensor, "width width"] | None = None
) -> None:
    """Write a plain model of the same class that has not these layers; whole, or not at all.

    The matrix is merged into the last weight of the MLP before. What was written is loaded and held against
    `without_layers` on two images with questions: a class that counts its layers in other places than its
    configuration says is refused.

    Raises ValueError for a folder that is there already, and for a model that cannot be shortened so.
    """
    folder, model = Path(folder), vlm.model
    if folder.exists():
        raise ValueError(f"{folder} is there already: name another folder, or delete it")
    inputs: dict[str, Any] = {**vlm.trial_inputs()}
    with torch.no_grad(), without_layers(vlm, first, length, matrix):
        expected = model(**inputs, use_cache=False).logits
    gone = range(first, first + length)
    shorter = copy.copy(model)
    shorter.config = _config(model.config, vlm.n_layers, gone)
    state = _state(vlm, gone, matrix, first)
    with atomic_folder(folder) as unfinished:
        shorter.save_pretrained(unfinished, state_dict=state)
        vlm.processor.save_pretrained(unfinished)
        again = type(model).from_pretrained(unfinished, dtype=model.dtype).to(vlm.device).eval()
        with torch.no_grad():
            found = again(**inputs, use_cache=False).logits
        error = (found - expected).abs().max() / expected.abs().max()
        if error > LOOSE * torch.finfo(model.dtype).eps:
            shutil.rmtree(unfinished)
            raise ValueError(
                f"{type(model).__name__} cannot be written without layers {first} to {first + length - 1}: "
                "loaded again it gives other logits than the model with these layers left out"
            )


def _config(config: Any, n_layers: int, gone: range) -> Any:
    """A copy of the configuration with fewer layers, and without their entries in lists of one for each."""
    short = copy.deepcopy(config)
    text = short.get_text_config(decoder=True)
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == n_layers:
            setattr(text, name, [one for k, one in enumerate(value) if k not in gone])
    text.num_hidden_layers = n_layers - len(gone)
    return short


def _state(vlm: VLM, gone: range, matrix: Tensor | None, first: int) -> dict[str, Tensor]:
    """Weights by name: layers behind the gap have lower numbers, and the MLP before has the matrix."""
    prefix, state = f"{vlm.anatomy.name}.", dict[str, Tensor]()
    for name, value in vlm.model.state_dict().items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            if int(number) in gone:
                continue
            behind = int(number) - len(gone) * (int(number) >= gone.stop)
            state[f"{prefix}{behind}.{rest}"] = value
        else:
            state[name] = value
    if matrix is not None:
        module = module_of(vlm, (first - 1, "MLP"))
        last = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1]
        name = next(n for n, part in vlm.model.named_modules() if part is module)
        weight = state[f"{name}.{last}.weight"]
        state[f"{name}.{last}.weight"] = (matrix.T.double() @ weight.double()).to(weight.dtype)
        if (bias := state.get(f"{name}.{last}.bias")) is not None:
            state[f"{name}.{last}.bias"] = (bias.double() @ matrix.double()).to(bias.dtype)
    return state
