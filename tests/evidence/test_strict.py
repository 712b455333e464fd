import pytest
from pydantic import ValidationError

from vlalign_utils.evidence.strict import Closed, Strict


class Number(Closed):
    x: float


class Exact(Strict):
    x: float
    n: int


def test_a_closed_model_converts_and_takes_no_unknown_field():
    assert Number.model_validate({"x": "1e-3"}).x == 1e-3
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Number.model_validate({"x": 1, "y": 2})


def test_a_strict_model_converts_nothing_and_stays_as_it_is():
    found = Exact.model_validate({"x": 1.0, "n": 2})
    with pytest.raises(ValidationError, match="should be a valid number"):
        Exact.model_validate({"x": "1", "n": 2})
    with pytest.raises(ValidationError, match="should be a valid integer"):
        Exact.model_validate({"x": 1.0, "n": 2.0})
    with pytest.raises(ValidationError, match="frozen"):
        found.n = 3
