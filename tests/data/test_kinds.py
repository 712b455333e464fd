import numpy as np
import pytest

from vlalign_utils.data import charts, signs
from vlalign_utils.data.documents import GUESS
from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.language import ITALIAN, LANGUAGES
from vlalign_utils.data.render import SIDE

ENGLISH = {italian: english for english, italian in ITALIAN.items()}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def test_the_same_seed_draws_the_same_subjects_and_pixels(kind):
    first, again, other, held = (
        list(kind.draw(20, seed, split))
        for seed, split in ((1, "train"), (1, "train"), (2, "train"), (1, "test"))
    )
    assert first == again
    assert len(first) == len(held) == 20
    assert first != other
    assert not {repr(s) for s in first} & {repr(s) for s in held}
    picture = kind.render(first[0])
    assert picture.shape == (SIDE, SIDE, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, kind.render(first[0]))


def test_answers_are_among_the_choices_in_the_language_of_the_question(kind):
    rng = np.random.default_rng(0)
    for subject in kind.draw(60, 0, "test"):
        for language in LANGUAGES:
            question = kind.ask(subject, language, rng)
            assert question.answer in question.choices
            assert len(set(question.choices)) == len(question.choices)
            assert question.text.endswith("?")


def test_regions_lie_in_the_picture_and_their_words_in_the_caption(kind):
    rng = np.random.default_rng(0)
    for subject in kind.draw(40, 0, "train"):
        said = set(kind.say(subject, "en", rng).replace(",", "").strip(".").split())
        for region in kind.regions(subject):
            assert 0 <= region.left < region.right <= SIDE
            assert 0 <= region.top < region.bottom <= SIDE
            assert set(region.words) <= said
            picture = kind.render(subject)[region.top : region.bottom, region.left : region.right]
            assert picture.max() > 100  # something bright is there


def test_marks_change_no_word_of_a_caption(kind):
    for subject in kind.draw(20, 0, "train"):
        plain, marked = (kind.say(subject, "it", np.random.default_rng(3), mark) for mark in ("", GUESS))
        assert marked.replace(GUESS, "") == plain


def test_shares_add_up_to_one():
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)


def test_chart_answers_are_read_off_the_bars():
    rng = np.random.default_rng(0)
    topics = set()
    for chart in charts.charts(200, 0, "train"):
        question = charts.ask_chart(chart, "en", rng)
        height = {bar.colour: charts.HEIGHTS.index(bar.height) for bar in chart.bars}
        if question.topic == "value":
            (named,) = [bar for bar in chart.bars if f" {bar.colour} " in question.text]
            assert question.answer == named.height
        else:
            best = max if question.topic == "highest" else min
            assert question.answer == best(height, key=height.get)
            assert set(question.choices) == set(height)
        topics.add(question.topic)
    assert topics == set(charts.TOPICS)


def test_a_bar_is_as_high_in_the_picture_as_it_says():
    for chart in charts.charts(30, 0, "test"):
        picture = charts.render_chart(chart).astype(int)
        for bar, (left, right) in zip(chart.bars, charts.edges(chart), strict=True):
            middle = picture[: charts.GROUND, (left + right) // 2]
            painted = np.abs(middle - middle[-2]).sum(1) < 110  # like the pixel just above the axis
            top = charts.GROUND - charts.UNIT * (charts.HEIGHTS.index(bar.height) + 1)
            assert painted[top + 1 :].mean() > 0.95
            assert painted[: top - 1].mean() < 0.1


def test_the_splits_of_charts_and_signs_are_disjoint_by_construction():
    for split, expected in (("train", False), ("test", True)):
        for chart in charts.charts(100, 0, split):
            assert any(charts.held_out(bar.colour, bar.height) for bar in chart.bars) == expected
        for sign in signs.signs(100, 0, split):
            assert signs.held_out(sign.text, sign.ink) == expected


def test_every_word_of_a_sign_fits_and_can_be_both_trained_and_tested():
    for split in ("train", "test"):
        seen = {sign.text for sign in signs.signs(600, 0, split)}
        assert seen == set(signs.WORDS)
    for sign in signs.signs(200, 0, "test"):
        picture = signs.render_sign(sign).astype(int)
        edge = np.concatenate([picture[0], picture[-1]])
        assert (np.abs(edge - np.median(edge, 0)).sum(1) > 200).mean() < 0.2  # not cut off above or below


def test_a_sign_is_answered_as_it_is_written_in_either_language():
    rng = np.random.default_rng(0)
    for sign in signs.signs(30, 0, "train"):
        for language in LANGUAGES:
            assert signs.ask_sign(sign, language, rng).answer == sign.text
