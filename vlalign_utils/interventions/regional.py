"""Effects of edits by region of the depth, such as before, inside and behind the abstraction phase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vlalign_utils.data.items import Item
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.interventions.sweep import Span
from vlalign_utils.interventions.windows import Intervention, sweep_spans

Regions = Mapping[str, Sequence[Span]]


@dataclass(frozen=True)
class Regional:
    """Losses of probability by edit: items are rows, the windows of all regions, in order, columns."""

    regions: Regions
    lost: dict[str, Float[np.ndarray, "items windows"]]

    def of(self, edit: str, region: str) -> Float[np.ndarray, " items"]:
        """Mean over the windows of a region."""
        found: Float[np.ndarray, " items"] = self.lost[edit][:, self._columns(region)].mean(axis=1)
        return found

    def _columns(self, region: str) -> list[int]:
        before = list(self.regions)[: list(self.regions).index(region)]
        start = sum(len(self.regions[name]) for name in before)
        return list(range(start, start + len(self.regions[region])))


def regional_sweep(
    vlm: VLM,
    questions: Mapping[str, Sequence[Item]],
    interventions: dict[str, Intervention],
    regions: Regions,
    seed: int = 0,
    batch_size: int = 64,
) -> Regional:
    """Apply each intervention to every window of every region, on the items answered correctly.

    Args:
        vlm: a model with its processor.
        questions: items about images by suite, which are pooled.
        interventions: as `windows.interventions` gives them.
        regions: windows (first, last), inclusive, by name, such as `phase.regions` gives them.
        seed: of the groups of tokens that are drawn.
        batch_size: items of one forward.

    Raises ValueError as `sweep_spans` does.

    Example:
        >>> from vlalign_utils import load_suite, load_vlm
        >>> from vlalign_utils.interventions.windows import FREEZES
        >>> asked = {"attributes": load_suite("attributes", 8)}
        >>> regions = {"first": [(0, 1)], "rest": [(2, 7)]}
        >>> found = regional_sweep(load_vlm("zoo/llava"), asked, FREEZES, regions)
        >>> found.of("all image tokens", "rest").shape
        (8,)
    """
    spans = [span for own in regions.values() for span in own]
    swept = [
        sweep_spans(vlm, items, interventions, spans, seed, batch_size, label=f"{suite}, regions")
        for suite, items in questions.items()
    ]
    return Regional(
        regions, {name: np.concatenate([one.drop(name) for one in swept]) for name in interventions}
    )
