"""Sizes of a study and the data it trains on: the same questions for every strategy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import WORLDS, load_suite
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference import scoring
from vlalign_utils.inference.scoring import Batch

TRIAL_BATCHES = 10  # that a short run is judged by
TRIAL_SEED = 1000  # of the data that learning rates are chosen on: no seed of the study
TIMED_BATCHES = 6  # of each of the fine-tunes that are timed


@dataclass(frozen=True)
class Protocol:
    """Sizes of a study: `rates` are tried for `trial_steps` each; `items` are held-out, for each suite.

    In each of `rounds` all strategies take turns at being timed. `world` is the one whose suites are asked.
    """

    band: tuple[int, int]
    steps: int
    epochs: int
    batch_size: int
    seeds: int
    rates: tuple[float, ...]
    trial_steps: int
    items: int
    rank: int
    singles: bool
    rounds: int
    world: str = "drawn"

    def __post_init__(self) -> None:
        """Raise ValueError for a size below one, or without a learning rate."""
        for name in ("steps", "epochs", "batch_size", "seeds", "trial_steps", "items", "rank", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates are {list(self.rates)}, expected one or more numbers above 0")

    @property
    def batches(self) -> int:
        """Batches of training data, each seen once an epoch."""
        return -(-self.steps // self.epochs)

    @property
    def timed_batches(self) -> int:
        """Batches of each fine-tune that is timed."""
        return min(TIMED_BATCHES, self.batches)


def protocol_of(params: Mapping[str, Any], world: str = "drawn") -> Protocol:
    """The protocol in a notebook's parameters, with a world's suites.

    Raises ValueError naming a parameter that is not possible.
    """
    if len(params["band"]) != 2:
        raise ValueError(f"band is {params['band']!r}, expected [first layer, layer after the last]")
    sizes = {
        name: params[name]
        for name in ("steps", "epochs", "batch_size", "seeds", "trial_steps", "items", "rounds")
    }
    first, stop = params["band"]
    rates, rank, singles = tuple(params["rates"]), params["rank"], params["singles"]
    return Protocol((first, stop), **sizes, rates=rates, rank=rank, singles=singles, world=world)


def vision_suites(world: str = "drawn") -> list[str]:
    """Suites of a world about what an image shows."""
    return [name for name, suite in WORLDS[world].suites.items() if suite.vision_centric]


@lru_cache(maxsize=1)  # strategy after strategy is given the same, and rendering images takes its time
def training_batches(vlm: VLM, protocol: Protocol, seed: int, n_batches: int) -> Sequence[Batch]:
    """Training questions of all vision-centric suites, as many of each, drawn with the seed."""
    return tuple(scoring.batches(vlm, _questions(protocol, seed, n_batches), protocol.batch_size))


@lru_cache(maxsize=1)
def trial_batches(vlm: VLM, protocol: Protocol) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Training batches of a short run, and others of the same suites that it is judged by."""
    # Split before they are batched by length, or the longest suites alone would be asked.
    every = _questions(protocol, TRIAL_SEED, protocol.trial_steps + TRIAL_BATCHES)
    trained = protocol.trial_steps * protocol.batch_size
    parts = every[:trained], every[trained:]
    one, other = (tuple(scoring.batches(vlm, part, protocol.batch_size)) for part in parts)
    return one, other


def _questions(protocol: Protocol, seed: int, n_batches: int) -> list[Item]:
    asked, world = vision_suites(protocol.world), protocol.world
    share = -(-n_batches * protocol.batch_size // len(asked))
    items = [item for name in asked for item in load_suite(name, share, seed, "train", world)]
    order = rng(seed, "lessons").permutation(len(items))[: n_batches * protocol.batch_size]
    return [items[i] for i in order]
