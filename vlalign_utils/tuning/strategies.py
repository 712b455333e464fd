"""Strategies of tuning: which decoder layers, with full weights or LoRA, the connector or not."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from vlalign_utils.driver.connector import connector
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.interventions.submodule_removal import PARTS


@dataclass(frozen=True)
class Strategy:
    """Decoder layers that a fine-tune trains; all else is frozen but what the other fields name.

    `layers` are ascending numbers from 0. `connector` trains the modules between vision tower and decoder.
    `rank` above 0 trains LoRA matrices of that rank in those layers, and none of their own weights: in every
    linear module, or in those of one `part`, "attention" or "MLP".
    `language` trains the whole language model: its embeddings, final norm and head as well. Raises ValueError
    for layers out of order, a rank without layers or beside `language`, a part without a rank or of another
    name, and for nothing to train.

    >>> from vlalign_utils import Strategy
    >>> band = Strategy("band", (2, 3, 4))
    >>> band.start, band.adapters(8)
    (2, Strategy(name='band, LoRA', layers=(2, 3, 4), connector=False, rank=8, language=False, part=''))
    """

    name: str
    layers: tuple[int, ...] = ()
    connector: bool = False
    rank: int = 0
    language: bool = False
    part: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for layers out of order, a negative rank, or nothing to train."""
        if list(self.layers) != sorted(set(self.layers)) or min(self.layers, default=0) < 0:
            raise ValueError(
                f"strategy {self.name!r}: layers are {list(self.layers)}, expected ascending numbers"
            )
        if self.rank < 0 or (self.rank and (self.language or not self.layers)):
            raise ValueError(f"strategy {self.name!r}: rank {self.rank} needs layers, and frozen ones")
        if self.part and (self.part not in PARTS["both"] or not self.rank):
            raise ValueError(
                f"strategy {self.name!r}: part {self.part!r} needs a rank, and to be one of "
                f"{', '.join(PARTS['both'])}"
            )
        if not (self.layers or self.connector or self.language):
            raise ValueError(f"strategy {self.name!r} trains nothing: no layers and no connector")

    @property
    def start(self) -> int | None:
        """The lowest layer that is trained; None when something below layer 0 is."""
        return None if self.connector or self.language else self.layers[0]

    def adapters(self, rank: int, part: str = "") -> "Strategy":
        """Strategy of the same layers with LoRA of this rank, in all linear modules or those of a part."""
        return replace(self, name=f"{self.name}, LoRA{f', {part}' * bool(part)}", rank=rank, part=part)

    def check_layers(self, n_layers: int) -> None:
        """Raise ValueError for a layer that a model of so many layers does not have."""
        beyond = [k for k in self.layers if k >= n_layers]
        if beyond:
            raise ValueError(
                f"strategy {self.name!r} trains layer {beyond[0]}, the model has {n_layers} layers"
            )

    def check_recordable(self) -> int:
        """The lowest trained layer, whose input can be recorded; raise ValueError where there is none."""
        if self.start is None:
            raise ValueError(
                f"strategy {self.name!r} trains weights below layer 0: what enters its layers changes with "
                "every step, so no input can be recorded: train it without"
            )
        return self.start


def described(strategy: Strategy) -> dict[str, Any]:
    """Fields of a strategy, without an empty part: what was written before there were parts is found again.

    >>> list(described(Strategy("band", (1, 2))))
    ['name', 'layers', 'connector', 'rank', 'language']
    """
    fields = asdict(strategy)
    if not strategy.part:
        del fields["part"]
    return fields


def strategies(n_layers: int, band: tuple[int, int]) -> dict[str, Strategy]:
    """Strategies that a band [first, stop) is compared with, by name.

    Full tuning trains all but the vision tower; `early`, `late` and `uniform` train as many layers as the
    band has, `complement` the others, `connector` none. `full`, `connector` and `band, connector` train the
    connector; with nothing trained below it, the input of all others can be recorded.
    Raises ValueError when the band is empty, leaves the model or fills it.
    """
    first, stop = band
    if not 0 <= first < stop <= n_layers or stop - first == n_layers:
        raise ValueError(
            f"the band [{first}, {stop}) does not fit: it must be a part of the model's {n_layers} layers"
        )
    width, every = stop - first, range(n_layers)
    # The middles of `width` equal parts of the depth.
    spread = np.floor((np.arange(width) + 0.5) * n_layers / width).astype(int)
    chosen = [
        Strategy("full", tuple(every), connector=True, language=True),
        Strategy("band", tuple(range(first, stop))),
        Strategy("band, connector", tuple(range(first, stop)), connector=True),
        Strategy("early", tuple(range(width))),
        Strategy("late", tuple(range(n_layers - width, n_layers))),
        Strategy("complement", tuple(k for k in every if not first <= k < stop)),
        Strategy("uniform", tuple(spread.tolist())),
        Strategy("connector", connector=True),
    ]
    return {strategy.name: strategy for strategy in chosen}


def trained(vlm: VLM, strategy: Strategy) -> list[nn.Parameter]:
    """The model's own parameters that a strategy trains, each once; for LoRA see `adapters`.

    Raises ValueError when a layer is not there, or no connector is found.
    """
    strategy.check_layers(vlm.n_layers)
    chosen: list[nn.Parameter] = []
    if strategy.connector:
        chosen += connector(vlm)
    if strategy.language:
        parts: Sequence[nn.Module | None] = (
            vlm.anatomy.ancestors()[-1],
            vlm.model.get_input_embeddings(),
            vlm.model.get_output_embeddings(),
        )
        chosen += [p for part in parts if part is not None for p in part.parameters()]
    if not strategy.rank:
        chosen += [p for k in strategy.layers for p in vlm.layers[k].parameters()]
    return list({id(p): p for p in chosen}.values())
