"""Submodules replaced by low-rank maps that are fitted to them, one after the other, in a single forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlalign_utils.compression.calibration import (
    Calibration,
    Unit,
    check_ran,
    entering,
    module_of,
    real_tokens,
    rows,
    states_of,
)
from vlalign_utils.compression.closed_form import in_basis, low_rank, shared_basis
from vlalign_utils.data.items import Item
from vlalign_utils.driver.residual_stream import replace_forward
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.scoring import as_batch

STRENGTH = 1e-2  # of the ridge, a share of the inputs' mean square
ADDED = 0.1  # parameters of all bypasses, a share of those that they replace


@dataclass(frozen=True)
class Bypass:
    """Linear map in a submodule's place: the product of `factors`, or zeros where there are none.

    `returned` is how many values the submodule returns beside its states, None where it returns them alone.
    `shared` says that the first factor belongs to several bypasses.
    """

    factors: tuple[Tensor, ...]
    returned: int | None
    shared: bool = False

    def parameters(self) -> int:
        """Number of its own parameters: a shared factor is not counted."""
        return sum(factor.numel() for factor in self.factors[self.shared :])

    def __call__(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Map the states that the submodule is given; return what it returns."""
        states = entering(module, args, kwargs)
        if not self.factors:
            mapped = torch.zeros_like(states)
        else:
            mapped = states
            for factor in self.factors:
                mapped = mapped @ factor.to(states)
        return mapped if self.returned is None else (mapped, *[None] * self.returned)


def ranks(vlm: VLM, units: Sequence[Unit], share: float = ADDED) -> dict[str, int]:
    """Rank of an attention's bypass, and size of the basis that MLPs share, for a share of the parameters.

    0 where no unit is of the part. Raises ValueError for a share that is not above 0, or too small for one
    dimension.
    """
    if not share > 0:
        raise ValueError(f"share is {share}, expected a number above 0")
    width, found = vlm.d_model, {}
    for part in ("attention", "MLP"):
        of_part = [unit for unit in units if unit[1] == part]
        removed = sum(p.numel() for unit in of_part for p in module_of(vlm, unit).parameters())
        # Attention has two factors each, MLPs one each and one for all.
        factors = 2 * len(of_part) if part == "attention" else 1 + len(of_part)
        found[part] = min(width, int(share * removed / (width * factors))) if of_part else 0
        if of_part and not found[part]:
            raise ValueError(f"a share of {share:g} of the {part} parameters is less than one dimension")
    return found


@torch.no_grad()
def fit_bypasses(
    vlm: VLM,
    items: Sequence[Item],
    units: Sequence[Unit],
    calibration: Calibration,
    share: float = ADDED,
    strength: float = STRENGTH,
) -> dict[Unit, Bypass]:
    """Fit a bypass for each unit, in the order of depth, on what reaches it through the bypasses before.

    All items run once, as one batch: when the forward reaches a unit, its inputs and outputs are those of the
    model compressed so far, the bypass is fitted to them, and what it gives goes on.

    Args:
        vlm: a model with its processor.
        items: questions with their answers; all have an image, or none.
        units: what is replaced.
        calibration: of the whole model on these items: MLPs share a basis of its inputs.
        share: parameters of the bypasses, over those that they replace.
        strength: of the ridge, see `closed_form.ridge`.

    Raises ValueError as `module_of`, `ranks` and `check_ran` do.
    Source: our reading of SubFit (arXiv 2606.02559).
    """
    sizes, batch = ranks(vlm, units, share), as_batch(vlm, items, range(len(items)))
    inputs: dict[str, Any] = {**batch.inputs}
    kept, fitted = real_tokens(batch.inputs), dict[Unit, Bypass]()
    mlps = sorted(layer for layer, part in units if part == "MLP")
    basis = shared_basis(torch.stack([calibration.inputs[k] for k in mlps]), sizes["MLP"]) if mlps else None

    def fit(unit: Unit, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x, y = rows(entering(module, args, kwargs), kept), rows(states_of(output), kept)
        xx, xy = x.T @ x, x.T @ y
        if unit[1] == "attention":
            factors = low_rank(xx, xy, sizes["attention"], strength)
        else:
            assert basis is not None  # there is an MLP among the units
            factors = basis, in_basis(basis, xx, xy, strength)
        single = tuple(factor.to(vlm.model.dtype) for factor in factors)
        fitted[unit] = Bypass(single, returned_by(output), shared=unit[1] == "MLP")
        return fitted[unit](module, *args, **kwargs)

    with ExitStack() as hooks:
        for unit in units:
            hook = partial(fit, unit)
            handle = module_of(vlm, unit).register_forward_hook(hook, with_kwargs=True)
            hooks.callback(handle.remove)
        check_ran(vlm, vlm.record(stop=vlm.n_layers, **inputs))
    return fitted


def returned_by(output: Any) -> int | None:
    """Number of values that a module returns beside its states; None where it returns them alone."""
    return None if isinstance(output, Tensor) else len(output) - 1


def nothing(vlm: VLM, items: Sequence[Item], units: Sequence[Unit]) -> dict[Unit, Bypass]:
    """Bypasses that give zeros: plain removal. One item is run to see what each submodule returns."""
    inputs: dict[str, Any] = {**as_batch(vlm, items, [0]).inputs}
    found: dict[Unit, Bypass] = {}

    def note(unit: Unit, module: nn.Module, args: Any, output: Any) -> None:
        found[unit] = Bypass((), returned_by(output))

    with ExitStack() as hooks:
        for unit in units:
            hooks.callback(module_of(vlm, unit).register_forward_hook(partial(note, unit)).remove)
        check_ran(vlm, vlm.record(stop=vlm.n_layers, **inputs))
    return found


@contextmanager
def bypassed(vlm: VLM, bypasses: Mapping[Unit, Bypass]) -> Iterator[VLM]:
    """Run the body with these bypasses in place: the submodules do not run, and are there again afterwards.

    A removed attention adds nothing to a cache of keys and values: score and record, but do not generate.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> from vlalign_utils.compression.calibration import calibrate
        >>> from vlalign_utils.inference.scoring import evaluate
        >>> vlm, items = load_vlm("zoo/llava"), load_suite("digits", 16)
        >>> found = calibrate(vlm, items)
        >>> units = found.least("MLP", 2)
        >>> with bypassed(vlm, fit_bypasses(vlm, items, units, found)):
        ...     len(evaluate(vlm, items).correct)
        16
    """
    with ExitStack() as undo:
        for unit, bypass in bypasses.items():
            module = module_of(vlm, unit)
            forward: Callable[..., Any] = partial(bypass, module)
            replace_forward(module, forward, undo)
        yield vlm
