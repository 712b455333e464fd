import numpy as np
import pytest
from tiny_models import ITEMS, build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.interventions import windows
from vlalign_utils.interventions.regional import Regional, regional_sweep

REGIONS = {"before": [(0, 0)], "inside": [(0, 1), (1, 1)], "behind": [(1, 1)]}


def test_a_region_is_the_mean_over_its_windows() -> None:
    lost = np.arange(12.0).reshape(3, 4) ** 2
    found = Regional(REGIONS, {"edit": lost})
    assert found.of("edit", "before").tolist() == lost[:, 0].tolist()
    assert found.of("edit", "inside").tolist() == lost[:, 1:3].mean(axis=1).tolist()
    assert found.of("edit", "behind").tolist() == lost[:, 3].tolist()


@pytest.mark.usefixtures("all_solved")
def test_regions_hold_what_sweeps_of_their_windows_find() -> None:
    vlm = VLM(build("llava")[0].model, tiny_processor())
    asked = {"one": ITEMS[:3], "other": ITEMS[3:]}
    found = regional_sweep(vlm, asked, windows.FREEZES, REGIONS, seed=5)
    for name in windows.FREEZES:
        swept = [windows.sweep(vlm, items, windows.FREEZES, 1, 5).drop(name) for items in asked.values()]
        alone = np.concatenate(swept)
        assert found.of(name, "before") == pytest.approx(alone[:, 0])
        assert found.of(name, "behind") == pytest.approx(alone[:, 1])
