"""Sizes of a study, and the questions it trains on: the same for every strategy, each drawn anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vlalign_utils.data.items import Item
from vlalign_utils.data.worlds import load_suite
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.evidence.intervals import rng
from vlalign_utils.inference import scoring
from vlalign_utils.inference.scoring import Batch
from vlalign_utils.tuning.accelerators import Precision

TRIAL_ITEMS = 100  # for each suite, drawn over all, that a learning rate is judged by
TRIAL_SEED = 1000  # of the data that learning rates are chosen on: no seed of the study
TIMED_BATCHES = 6  # of each of the fine-tunes that are timed
EPOCHS = 3  # of these batches
FEWER = 3  # seeds of strategies that no claim is about


@dataclass(frozen=True)
class Protocol:
    """Sizes of a study: `rates` are tried for `trial_steps` each; `items` are held out, of each suite.

    A strategy takes `steps` steps of `batch_size` questions of the `suites` of a world, each drawn anew.
    In each of `rounds` all strategies take turns at being timed. `precision` is that of `Budget`.
    """

    band: tuple[int, int]
    suites: tuple[str, ...]
    steps: int
    batch_size: int
    seeds: int
    rates: tuple[float, ...]
    trial_steps: int
    items: int
    rank: int
    rounds: int
    precision: Precision = "auto"
    world: str = "drawn"

    def __post_init__(self) -> None:
        """Raise ValueError for a size below one, or without a learning rate or a suite."""
        for name in ("steps", "batch_size", "seeds", "trial_steps", "items", "rank", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates are {list(self.rates)}, expected one or more numbers above 0")
        if not self.suites:
            raise ValueError("suites are [], expected the names of one or more")

    @property
    def timed_batches(self) -> int:
        """Batches of each fine-tune that is timed, over `EPOCHS` epochs."""
        return min(TIMED_BATCHES, self.steps)


def protocol_of(params: Mapping[str, Any], world: str = "drawn") -> Protocol:
    """The protocol in a notebook's parameters, with a world's suites.

    Raises ValueError naming a parameter that is not possible.
    """
    if len(params["band"]) != 2:
        raise ValueError(f"band is {params['band']!r}, expected [first layer, layer after the last]")
    whole = ("steps", "batch_size", "seeds", "trial_steps", "items", "rank", "rounds")
    first, stop = params["band"]
    return Protocol(
        (first, stop),
        tuple(params["suites"]),
        **{name: params[name] for name in whole},
        rates=tuple(params["rates"]),
        precision=params["precision"],
        world=world,
    )


@lru_cache(maxsize=1)  # strategy after strategy is given the same, and rendering images takes its time
def training_batches(vlm: VLM, protocol: Protocol, seed: int, n_batches: int) -> Sequence[Batch]:
    """Batches of training questions of all suites, as many of each, drawn with the seed."""
    questions = _questions(protocol, seed, n_batches * protocol.batch_size)
    return tuple(scoring.batches(vlm, questions, protocol.batch_size))


@lru_cache(maxsize=1)
def trial_data(vlm: VLM, protocol: Protocol) -> tuple[Sequence[Batch], Sequence[Item]]:
    """Training batches of a short run, and other training questions of the same suites that judge it."""
    trained, asked = protocol.trial_steps * protocol.batch_size, TRIAL_ITEMS * len(protocol.suites)
    # Split before they are batched by length, or the longest suites alone would be asked.
    every = _questions(protocol, TRIAL_SEED, trained + asked)
    return tuple(scoring.batches(vlm, every[:trained], protocol.batch_size)), every[trained:]


def _questions(protocol: Protocol, seed: int, number: int) -> list[Item]:
    share = -(-number // len(protocol.suites))
    drawn = (load_suite(name, share, seed, "train", protocol.world) for name in protocol.suites)
    items = [item for suite in drawn for item in suite]
    return [items[i] for i in rng(seed, "lessons").permutation(len(items))[:number]]
