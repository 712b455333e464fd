"""Every thing is drawn in every style, and a damaged sheet is said."""

import numpy as np
import pytest

from vlalign_utils.data.things import sheets
from vlalign_utils.data.things.sheets import STYLES, cell
from vlalign_utils.data.things.table import layout, things


@pytest.mark.slow  # reads four sheets
def test_every_thing_is_drawn_in_every_style_and_differently():
    assert len(STYLES) >= 4
    for thing in things():
        cells = [np.asarray(cell(thing.index, style), np.float32) for style in STYLES]
        for drawing, style in zip(cells, STYLES, strict=True):
            assert drawing.shape == (layout().cell, layout().cell, 4)
            alpha = drawing[..., 3]
            assert (alpha > 128).mean() > 0.02, (thing.name, style)
            rows, columns = (np.flatnonzero((alpha > 16).any(axis)) for axis in (1, 0))
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            assert layout().cell - 8 <= extent <= layout().cell, (thing.name, style)  # fills its cell
        seen = [c[..., :3] * c[..., 3:] / 255 for c in cells]
        for i in range(len(seen)):
            for j in range(i):
                assert np.abs(seen[i] - seen[j]).mean() > 1, (thing.name, STYLES[i], STYLES[j])


@pytest.mark.slow  # compares all drawings of a style
def test_no_two_things_have_the_same_drawing():
    for style in ("fluentflat", "twitter"):
        small = np.stack([np.asarray(cell(t.index, style).resize((16, 16))).ravel() for t in things()]) / 255
        distance = ((small**2).sum(1)[:, None] + (small**2).sum(1) - 2 * small @ small.T) / small.shape[1]
        np.fill_diagonal(distance, 1)
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        assert distance.min() > 2e-3, (style, things()[i].name, things()[j].name)


def test_a_cell_lies_where_the_table_says():
    last = len(things()) - 1
    x, y = last % layout().columns * layout().cell, last // layout().columns * layout().cell
    whole = np.asarray(sheets._sheet("google"))
    assert np.array_equal(np.asarray(cell(last, "google")), whole[y : y + 128, x : x + 128])


def test_an_unknown_style_or_thing_is_refused():
    with pytest.raises(
        ValueError, match="style is 'oil'; expected one of google, fluent3d, fluentflat, twitter"
    ):
        cell(0, "oil")
    with pytest.raises(ValueError, match="there is no thing -1; things are numbered from 0 to"):
        cell(-1, "google")


def test_a_missing_or_damaged_sheet_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sheets, "FOLDER", tmp_path)
    read = sheets._sheet.__wrapped__
    with pytest.raises(
        ValueError, match=r"twitter\.webp cannot be read \(No such file or directory\): restore"
    ):
        read("twitter")
    (tmp_path / "twitter.webp").write_bytes(b"RIFF")
    with pytest.raises(
        ValueError, match=r"twitter\.webp is not the sheet that things\.json describes: restore"
    ):
        read("twitter")
