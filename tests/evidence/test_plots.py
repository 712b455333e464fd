import io
import itertools
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from vlalign_utils.evidence import plots
from vlalign_utils.evidence.intervals import Band, Interval, bootstrap_curve


@pytest.fixture(autouse=True)
def _own_settings() -> Iterator[None]:
    with mpl.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


def luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colors.to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png")
    return buffer.getvalue()


def curve() -> Band:
    return bootstrap_curve(np.random.default_rng(0).random((30, 9)))


def example() -> Figure:
    fig, axes = plots.figure(columns=3)
    plots.curves(axes[0], {"aligned": curve(), "tuned": curve(), "something else": curve()})
    plots.level(axes[0], 0.125, "chance")
    plots.heat(axes[1], np.eye(9), "tuned", (0.0, 1.0), mark=(3, 4))
    score = {"digits": Interval(0.9, 0.8, 0.95, 50), "counting": Interval(0.7, 0.6, 0.8, 50)}
    plots.bars(axes[2], {"aligned": score, "tuned": score}, "accuracy", {"digits": 0.1, "counting": 0.25})
    plots.footer(fig, n=30, seed=1, method="a method " * 20, null="none")
    return fig


@pytest.mark.parametrize("palette", [plots.STAGES, plots.MODALITIES])
def test_palettes_survive_grey_print(palette: dict[str, plots.Look]) -> None:
    for a, b in itertools.combinations(palette.values(), 2):
        assert contrast(a.colour, b.colour) > 1.3
        assert a.dash != b.dash
        assert a.marker != b.marker


@pytest.mark.parametrize("look", [*plots.STAGES.values(), *plots.MODALITIES.values(), *plots.OTHERS])
def test_lines_stand_out_from_the_background(look: plots.Look) -> None:
    assert contrast(look.colour, plots.BACKGROUND) >= 3  # WCAG 1.4.11, graphical objects


@pytest.mark.parametrize("text", [plots.INK, plots.MUTED])
def test_text_is_readable_on_the_background(text: str) -> None:
    assert contrast(text, plots.BACKGROUND) >= 4.5  # WCAG 1.4.3


def test_the_same_figure_is_the_same_bytes_and_small() -> None:
    first, second = png(example()), png(example())
    assert first == second
    assert len(first) < 100_000


@pytest.mark.slow
def test_background_is_opaque_and_light() -> None:
    image = plt.imread(io.BytesIO(png(example())))
    assert image[0, 0, 3] == 1
    assert image[0, 0, :3].min() > 0.9


def test_a_stage_looks_the_same_in_every_figure() -> None:
    assert plots.look("tuned", 0) == plots.look("tuned", 5) == plots.STAGES["tuned"]
    assert plots.look("band", 1) == plots.OTHERS[1]


def test_a_curve_is_drawn_with_its_interval() -> None:
    _, (ax,) = plots.figure()
    band = curve()
    plots.curves(ax, {"tuned": band})
    assert ax.lines[0].get_ydata() == pytest.approx(band.value)
    shaded = ax.collections[0].get_paths()[0].vertices
    assert shaded[:, 1].min() == pytest.approx(band.low.min())
    assert shaded[:, 1].max() == pytest.approx(band.high.max())


def test_a_control_is_grey_with_the_dash_of_its_curve_and_named_once() -> None:
    _, (ax,) = plots.figure()
    bands = {"image": curve(), "text": curve()}
    plots.curves(ax, bands)
    plots.controls(ax, bands)
    for line, other in zip(ax.lines[:2], ax.lines[2:], strict=True):
        assert other.get_color() == plots.MUTED
        assert (other.get_linestyle(), other.get_marker()) == (line.get_linestyle(), line.get_marker())
        assert other.get_ydata() == pytest.approx(line.get_ydata())
    assert [entry.get_text() for entry in ax.get_legend().get_texts()] == ["image", "text", "control"]


def test_a_grid_that_begins_at_layer_1_says_so() -> None:
    _, (ax,) = plots.figure()
    shown = plots.heat(ax, np.eye(9)[1:, 1:], "tuned", (0.0, 1.0), mark=(2, 0), first=1)
    assert shown.get_extent() == [0.5, 8.5, 0.5, 8.5]
    assert {tuple(float(v[0]) for v in line.get_data()) for line in ax.lines} == {(1.0, 3.0)}


def test_pictures_fill_rows_and_leave_the_rest_empty() -> None:
    fig = plots.images([Image.new("RGB", (8, 8), "red")] * 5, list("abcde"), columns=4)
    assert [ax.texts[0].get_text() for ax in fig.axes if ax.texts] == list("abcde")
    assert not any(ax.axison for ax in fig.axes)


def test_footer_holds_what_a_reader_needs() -> None:
    text = example().texts[0].get_text().replace("\n", " ")
    assert text.startswith("N = 30 · seed 1 · a method")
    assert text.endswith("null: none")


def test_a_figure_in_a_page_is_small_and_looks_the_same():
    fig, (ax,) = plots.figure()
    plots.curves(ax, {"image": Band(np.arange(3.0), np.arange(3.0) - 0.2, np.arange(3.0) + 0.2, 9)})
    full = io.BytesIO()
    fig.savefig(full, format="png")
    small = plots.palette_png(fig)
    assert len(small) < 0.5 * len(full.getvalue())
    one, other = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), float) for data in (full.getvalue(), small)
    )
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 1
    assert small == plots.palette_png(fig)


def test_as_many_strategies_as_a_study_has_look_different():
    looks = [tuple(str(v) for v in plots.line_look(i).values()) for i in range(13)]
    assert len(set(looks)) == 13


def test_every_point_is_drawn_with_its_intervals_and_named():
    ax = Figure().subplots()
    points = {f"s{i}": (Interval(i, i - 1, i + 1, 3), Interval(2 * i, 0, 3 * i, 9)) for i in range(12)}
    plots.points(ax, points)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(points)
    lines = [line.get_xydata().tolist() for line in ax.lines]
    assert lines[6:9] == [[[1, 4], [3, 4]], [[2, 0], [2, 6]], [[2, 4]]]
