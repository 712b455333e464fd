"""Study of adapters by depth: LoRA of as many parameters in windows of layers, and placed in other ways."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from vlalign_utils.data.items import Item
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.tuning.gradient_energy import gradient_energy, highest
from vlalign_utils.tuning.lora import parameter_count
from vlalign_utils.tuning.outcomes import Trial, normalised
from vlalign_utils.tuning.protocol import FEWER, TRIAL_SEED, Protocol, training_batches
from vlalign_utils.tuning.strategies import Strategy, strategies
from vlalign_utils.tuning.study import ADAPTED, Trainer, compared
from vlalign_utils.tuning.study_records import Record, Records

ENERGY_BATCHES = 8  # that gradient energies are means of
RANKS = (0.25, 4)  # multiples of the protocol's rank, beside it
SPREAD = ("uniform", "everywhere", "most gradient energy")  # placements that are no window


@dataclass(frozen=True)
class AdapterStudy:
    """Records by strategy, one per seed, the evaluation items by suite, and what rates were tried.

    `aligned` is the record of the model that all start from, `energy` the gradient energy of its layers.
    """

    aligned: Record
    tuned: Record
    found: dict[str, list[Record]]
    evaluation: dict[str, list[Item]]
    tried: dict[str, dict[float, Trial]]
    energy: list[float]

    def scores(self, name: str, suites: Sequence[str]) -> Float[np.ndarray, "seeds items"]:
        """Normalised score of a strategy, "aligned" or "tuned" per seed and item, as in `Study.scores`."""
        own = {"aligned": [self.aligned], "tuned": [self.tuned]}
        return normalised(own.get(name) or self.found[name], self.evaluation, suites)


def windows(n_layers: int, protocol: Protocol) -> dict[str, Strategy]:
    """LoRA in as many layers as the band has, at up to five depths, by name, from the first layers on.

    Those of `early`, `band` and `late` are among them; between two of these lies a window half-way, where
    there is one. Raises ValueError for a band that is itself the first or the last layers.
    """
    known = strategies(n_layers, protocol.band)
    named = sorted((known[name] for name in ADAPTED), key=lambda s: s.layers)
    if len({strategy.layers for strategy in named}) < len(named):
        raise ValueError(f"the band {list(protocol.band)} must lie between the first and the last layers")
    width, found = len(known["band"].layers), [named[0]]
    for one, other in pairwise(named):
        first = (one.layers[0] + other.layers[0]) // 2
        if one.layers[0] < first < other.layers[0]:
            found.append(
                Strategy(f"layers {first} to {first + width - 1}", tuple(range(first, first + width)))
            )
        found.append(other)
    lora = [strategy.adapters(protocol.rank) for strategy in found]
    return {strategy.name: strategy for strategy in lora}


def placements(vlm: VLM, protocol: Protocol, energy: list[float]) -> list[Strategy]:
    """All strategies of the study: windows, other placements, other ranks, and parts of the layers.

    All but those of another rank have as many parameters as LoRA in the band, as far as whole ranks allow.
    What is the same as one before it is left out, such as the layers of most energy where they are the band.
    """
    known, rank = strategies(vlm.n_layers, protocol.band), protocol.rank
    width = len(known["band"].layers)
    chosen = list(windows(vlm.n_layers, protocol).values())
    chosen.append(known["uniform"].adapters(rank))
    chosen += [s for s in compared(vlm.n_layers, protocol) if s.name == "everywhere, LoRA"]
    chosen.append(Strategy("most gradient energy", highest(energy, width)).adapters(rank))
    for name in ADAPTED:
        chosen += [_of_rank(known[name], max(1, round(rank * times))) for times in RANKS]
    for part in ("attention", "MLP"):
        for name in ADAPTED:
            layers = known[name].layers
            whole = parameter_count(vlm, layers, rank)
            alone = max(1, round(whole / parameter_count(vlm, layers, 1, part)))
            chosen.append(known[name].adapters(alone, part))
    distinct = {(s.layers, s.rank, s.part): s for s in reversed(chosen)}
    return [s for s in chosen if s in distinct.values()]


def _of_rank(strategy: Strategy, rank: int) -> Strategy:
    lora = strategy.adapters(rank)
    return Strategy(f"{lora.name}, rank {rank}", lora.layers, rank=rank)


def seeds_of(strategy: Strategy, protocol: Protocol) -> range:
    """Seeds that a strategy is trained with: `FEWER` for other ranks in a window, and for parts of layers."""
    fewer = strategy.part or strategy.rank != protocol.rank
    everywhere = strategy.name.startswith("everywhere")
    return range(min(FEWER, protocol.seeds) if fewer and not everywhere else protocol.seeds)


def energy_of(trainer: Trainer) -> list[float]:
    """Gradient energy of the start's layers, on training questions that no seed of the study is given."""
    about = {"what": "energy", **trainer.start, "batches": ENERGY_BATCHES, "seed": TRIAL_SEED}

    def measured() -> Record:
        data = training_batches(trainer.vlm, trainer.protocol, TRIAL_SEED, ENERGY_BATCHES)
        return {"energy": [float(f"{e:.6g}") for e in gradient_energy(trainer.vlm, data)]}

    found: list[float] = trainer.said(about, measured)["energy"]
    return found


def adapter_study(
    vlm: VLM, tuned: VLM, protocol: Protocol, kept: Records, show: bool = False
) -> AdapterStudy:
    """Train, or find the records of, LoRA at every depth and placed in other ways, for every seed.

    Rates are chosen, and models scored, as in `study.study`; what both ask for is found on record.
    """
    trainer = Trainer(vlm, protocol, kept, show)
    chosen = placements(vlm, protocol, energy := energy_of(trainer))
    before, after = trainer.untrained("aligned", vlm), trainer.untrained("tuned", tuned)
    tried = {strategy.name: trainer.trials(strategy) for strategy in chosen}
    found = {s.name: [trainer.run(s, seed) for seed in seeds_of(s, protocol)] for s in chosen}
    return AdapterStudy(before, after, found, trainer.evaluation, tried, energy)
