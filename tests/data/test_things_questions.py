"""What questions about things may ask."""

import numpy as np

from vlalign_utils.data.things.overlap import overlap
from vlalign_utils.data.things.questions import absent
from vlalign_utils.data.things.splits import held_out_pair, trained_things
from vlalign_utils.data.things.table import by_name


def test_an_absent_thing_is_no_other_name_of_a_shown_one_and_not_held_out_beside_it():
    rng = np.random.default_rng(0)
    known = trained_things()
    for _ in range(200):
        shown = [known[i] for i in rng.choice(len(known), 2, replace=False)]
        other = absent(shown, rng)
        assert other in known
        assert not any(overlap(other, own) or held_out_pair(other, own) for own in shown)


def test_no_training_question_denies_that_a_poodle_is_a_dog():
    rng = np.random.default_rng(0)
    names = {absent([by_name()["poodle"]], rng, [by_name()["dog"], by_name()["owl"]]).name for _ in range(20)}
    assert names == {"owl"}
