import io

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from vlalign_utils.evidence import plots
from vlalign_utils.evidence.figure_text import CURVES, describe
from vlalign_utils.evidence.intervals import Band, Interval


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def band(*values: float) -> Band:
    mean = np.array(values)
    return Band(mean, mean - 0.1, mean + 0.1, 9)


def test_curves_say_where_they_begin_are_highest_and_end() -> None:
    fig, axes = plots.figure(columns=2)
    plots.curves(axes[0], {"base": band(0.1, 0.5, 0.2), "tuned": band(0.3, 0.2, 0.1)})
    plots.level(axes[0], 0.0, "no effect")
    axes[0].set(title="overlap\nof both", ylabel="share")
    assert describe(fig) == (
        "overlap of both, share over layer: base 0.1 at 0, highest 0.5 at 1, 0.2 at 2; "
        "tuned 0.3 at 0, highest 0.3 at 0, 0.1 at 2. panel."
    )


def test_many_curves_are_counted() -> None:
    fig, (ax,) = plots.figure()
    plots.curves(ax, {f"c{i}": band(0.1, 0.5, 0.2) for i in range(CURVES + 2)})
    assert describe(fig).endswith("; and 2 more curves.")


def test_rows_of_points_and_grids_are_told() -> None:
    fig, axes = plots.figure(columns=2)
    plots.bars(
        axes[0],
        {"all": {"naming": Interval(0.9, 0.8, 1.0, 9), "counting": Interval(0.5, 0.4, 0.6, 9)}},
        "score",
    )
    plots.heat(axes[1], np.arange(6.0).reshape(2, 3), "grid", (0, 5), first=1)
    told = describe(fig)
    assert told.startswith("score: naming 0.9; counting 0.5. ")
    assert told.endswith("caption layer: 2 rows by 3 columns, highest 5 at column 3, row 2.")


def test_a_page_s_png_holds_the_words() -> None:
    fig, (ax,) = plots.figure()
    plots.curves(ax, {"ähnlich": band(0.1, 0.5, 0.2)})
    with Image.open(io.BytesIO(plots.palette_png(fig))) as opened:
        assert opened.info[plots.DESCRIPTION] == describe(fig)
