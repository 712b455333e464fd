"""What is held out, and that it does not depend on the order of things or on chance."""

import hashlib
import re
from itertools import combinations

import pytest

from vlalign_utils.data.things.sheets import STYLES
from vlalign_utils.data.things.splits import (
    HELD_OUT_STYLE,
    TRAINED_STYLES,
    held_out,
    held_out_number,
    held_out_pair,
    held_out_things,
    kind_asked,
    shows_held_out,
    trained_things,
)
from vlalign_utils.data.things.table import by_name, kinds, things


def test_one_style_is_held_out():
    assert {*TRAINED_STYLES, HELD_OUT_STYLE} == set(STYLES)
    assert HELD_OUT_STYLE not in TRAINED_STYLES


def test_a_tenth_of_the_things_is_held_out_and_spread_over_kinds():
    assert set(trained_things()) | set(held_out_things()) == set(things())
    assert not set(trained_things()) & set(held_out_things())
    assert len(held_out_things()) / len(things()) == pytest.approx(0.1, abs=0.02)
    assert len({thing.kind for thing in held_out_things()}) >= 20
    assert {thing.kind for thing in trained_things()} == set(kinds())


def test_the_choice_is_a_hash_of_the_name():
    for thing in things()[:50]:
        digest = hashlib.sha256(f"thing|{thing.name}".encode()).digest()
        assert held_out(thing) == (int.from_bytes(digest[:8], "big") < 2**64 // 10)


def test_a_tenth_of_the_pairs_is_held_out_in_either_order():
    some = things()[::7]
    pairs = list(combinations(some, 2))
    share = sum(held_out_pair(a, b) for a, b in pairs) / len(pairs)
    assert share == pytest.approx(0.1, abs=0.015)
    assert all(held_out_pair(a, b) == held_out_pair(b, a) for a, b in pairs[:500])


def test_a_tenth_of_the_numbers_from_two_is_held_out():
    numbers = [held_out_number(thing, n) for thing in things() for n in (2, 3, 4)]
    assert sum(numbers) / len(numbers) == pytest.approx(0.1, abs=0.02)
    assert not any(held_out_number(thing, 1) for thing in things())


def test_the_kind_is_asked_of_half_of_the_trained_things_and_of_none_held_out():
    asked = [thing for thing in things() if kind_asked(thing)]
    assert len(asked) / len(trained_things()) == pytest.approx(0.5, abs=0.06)
    assert not any(map(held_out, asked))
    assert {thing.kind for thing in asked} == set(kinds())  # every kind is an answer in training


def test_a_scene_shows_what_is_held_out_by_any_of_the_four_rules():
    new, old = by_name()["cat"], by_name()["dog"]
    assert held_out(new)
    assert not held_out(old)
    partner = next(t for t in trained_things() if t != old and held_out_pair(old, t))
    friend = next(t for t in trained_things() if t != old and not held_out_pair(old, t))
    repeated, number = next((t, n) for t in trained_things() for n in (2, 3, 4) if held_out_number(t, n))
    assert shows_held_out([new])
    assert shows_held_out([old, partner])
    assert shows_held_out([friend, old, partner])
    assert shows_held_out([repeated] * number)
    assert shows_held_out([old], [HELD_OUT_STYLE])
    assert not shows_held_out([old, friend], TRAINED_STYLES)
    assert not shows_held_out([old])


def test_no_text_about_trained_things_names_one_that_is_held_out():
    names = {name.lower() for thing in held_out_things() for name in (thing.name, thing.plural)}
    for thing in trained_things():
        text = f" {' '.join(re.findall('[a-z]+', ' '.join((thing.gloss, *thing.keywords)).lower()))} "
        assert [name for name in names if f" {name} " in text] == [], thing.name
