"""Signs, handwritten digits and charts: what is held out stays out, and questions have the right answer."""

from itertools import pairwise

import numpy as np
import pytest

from vlalign_utils.data.render import digit_items
from vlalign_utils.data.things import month_charts, written_signs
from vlalign_utils.data.things.handwriting import draw_digit, written_digits
from vlalign_utils.data.things.month_charts import MonthChart, draw_chart
from vlalign_utils.data.things.splits import held_out_things
from vlalign_utils.data.things.words import accepted_names
from vlalign_utils.data.things.written_questions import ask_extreme, ask_higher, chart_caption
from vlalign_utils.data.things.written_signs import draw_sign

SIDES = (96, 160, 448)


def test_signs_of_the_splits_share_no_word_in_an_ink_and_no_typeface():
    train, test = (list(written_signs.written_signs(900, 0, split)) for split in ("train", "test"))
    assert not {(s.word, s.ink) for s in train} & {(s.word, s.ink) for s in test}
    assert not {s.typeface for s in train} & {s.typeface for s in test}
    assert {s.word for s in train} == set(written_signs.WORDS)


def test_no_word_of_a_sign_names_a_thing_that_is_held_out():
    secret = {name for thing in held_out_things() for name in accepted_names(thing)}
    assert not set(written_signs.WORDS) & secret
    assert len(set(written_signs.WORDS)) == len(written_signs.WORDS)


@pytest.mark.parametrize("side", SIDES)
def test_a_sign_s_ink_lies_on_its_board(side):
    for sign in written_signs.written_signs(4, 1, "train"):
        image, (left, top, right, bottom) = draw_sign(sign, side)
        assert image.shape == (side, side, 3)
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1
        ink = np.abs(image.astype(int) - written_signs.INKS[sign.ink]).sum(-1) < 12
        rows, columns = (np.flatnonzero(ink.any(axis)) / side for axis in (1, 0))
        assert ink.sum() > 0.002 * side**2
        assert top - 0.01 <= rows.min()
        assert rows.max() <= bottom + 0.01
        assert left - 0.01 <= columns.min()
        assert columns.max() <= right + 0.01


@pytest.mark.parametrize("side", SIDES)
def test_a_digit_lies_in_its_box(side):
    for digit in written_digits(6, 0, "test"):
        assert digit.item < len(digit_items("test")[digit.value])
        image, (left, top, right, bottom) = draw_digit(digit, side)
        paper = image[0, 0] if left > 0.02 or top > 0.02 else image[-1, -1]
        drawn = np.abs(image.astype(int) - paper).sum(-1) > 60
        rows, columns = (np.flatnonzero(drawn.any(axis)) / side for axis in (1, 0))
        assert top - 0.01 <= rows.min() < rows.max() <= bottom + 0.01
        assert left - 0.01 <= columns.min() < columns.max() <= right + 0.01


def test_charts_of_the_splits_share_no_neighbours():
    def neighbours(split):
        return {p for chart in month_charts.month_charts(300, 0, split) for p in pairwise(chart.months)}

    train, test = neighbours("train"), neighbours("test")
    assert not train & {p for p in test if month_charts.held_out(p)}
    assert {p for p in test if month_charts.held_out(p)}


def test_questions_about_a_chart_have_its_answers():
    chart = MonthChart(("Mar", "May", "Oct"), (5, 1, 7), 0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        extreme, higher = ask_extreme(chart, rng), ask_higher(chart, rng)
        assert extreme.answer == ("May" if "lowest" in extreme.prompt else "October")
        heights = {"March": 5, "May": 1, "October": 7}
        first, second = sorted((m for m in heights if m in higher.prompt), key=higher.prompt.index)
        assert higher.answer == ("Yes" if heights[first] > heights[second] else "No")
    assert chart_caption(chart) == "A bar chart: March 5, May 1, October 7."


def test_the_highest_bar_is_drawn_highest():
    chart = MonthChart(("Mar", "May", "Oct"), (5, 1, 7), 3)
    image, columns = draw_chart(chart, 160)
    tops = []
    for left, _, right, _ in columns:
        middle = image[:, int((left + right) / 2 * 160)].astype(int)
        tops.append(int(np.flatnonzero(np.abs(middle - image[0, 0]).sum(-1) > 60)[0]))
    assert np.argsort(tops).tolist() == [2, 0, 1]
