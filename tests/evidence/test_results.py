import json

import numpy as np
import pandas as pd
import pytest

from vlalign_utils.evidence import claim_rules, results
from vlalign_utils.evidence.claim_rules import ClaimError
from vlalign_utils.evidence.intervals import Interval
from vlalign_utils.evidence.results import Report, ResultsError


@pytest.fixture
def report(tmp_path):
    return Report("02_probing", arch="llava", params={"seed": 0, "quick": True}, out_dir=str(tmp_path))


def test_report_writes_what_the_schema_reads(report):
    report.value("accuracy", np.float32(0.9123456789), 0.9, 0.95, np.int64(200), chance=1 / 3)
    report.table("by layer", pd.DataFrame({"layer": [0, 1], "score": [0.1, 2 / 3], "kind": ["a", "b [c]"]}))
    report.timing("fit", 1.5)
    read = results.read(report.save())
    assert read.values["accuracy"].value == 0.912346
    assert read.values["accuracy"].chance == 0.333333
    assert read.frame("by layer").to_dict("list") == {
        "layer": [0, 1],
        "score": [0.1, 0.666667],
        "kind": ["a", "b [c]"],
    }
    assert (read.quick, read.timing) == (True, {"fit": 1.5})


def test_same_numbers_are_the_same_bytes_and_rows_are_lines(report):
    report.table("t", pd.DataFrame({"x": [1, 2], "y": [-0.0, 1e-9]}))
    first = report.save().read_bytes()
    assert b"[1, 0.0],\n" in first
    assert report.save().read_bytes() == first


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float32("nan")])
def test_a_number_that_is_not_finite_is_named(report, number):
    with pytest.raises(ResultsError, match=r"'score' \(low\)"):
        report.value("score", 0.5, number, 0.6, 10)


def test_a_bad_cell_of_a_table_is_named(report):
    with pytest.raises(ResultsError, match="table 't', row 1, column 'y'"):
        report.table("t", pd.DataFrame({"y": [1.0, np.nan]}))


def test_values_must_make_sense_and_be_new(report):
    with pytest.raises(ResultsError, match=r"'a': .*low 0.6 is above high 0.4"):
        report.value("a", 0.5, 0.6, 0.4, 10)
    with pytest.raises(ResultsError, match=r"'a': .*greater than or equal to 1"):
        report.value("a", 0.5, 0.4, 0.6, 0)
    report.value("a", 0.5, 0.4, 0.6, 10)
    with pytest.raises(ResultsError, match="'a' is reported twice in 02_probing"):
        report.value("a", 0.5, 0.4, 0.6, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arch": 3}, "arch: Input should be a valid string"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"tables": {"t": {"columns": ["x"], "rows": [[1, 2]]}}}, "row 0 has 2 cells for 1 columns"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_a_malformed_file_is_named_with_its_field(report, change, message):
    path = report.save()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultsError, match=message) as caught:
        results.read(path)
    assert str(path) in str(caught.value)


def test_load_finds_published_results_wherever_they_are(report, tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_RESULTS", str(tmp_path))
    with pytest.raises(ResultsError, match=r"llava/02_probing.json does not exist"):
        results.load("llava", "02_probing")
    (tmp_path / "llava").mkdir()
    path = report.save().rename(tmp_path / "llava" / "02_probing.json")
    with pytest.raises(ResultsError, match="has no digest: it was not published by a run; run: make run"):
        results.load("llava", "02_probing")
    path.write_text(results.read(path).sealed().dumps())
    loaded = results.load("llava", "02_probing")
    assert loaded.notebook == "02_probing"
    with pytest.raises(ResultsError, match="llava/02_probing has no table 't'; it has: none"):
        loaded.frame("t")


DEPTH, GUARD = Interval(0.4, 0.3, 0.512345678, 200), Interval(0.1, 0.05, 0.2, 100)


def entry(depth=DEPTH, guard=GUARD):
    return dict(zip(claim_rules.claim("entry").conditions, (depth, guard), strict=True))


@pytest.fixture
def geometry(tmp_path):
    return Report("03_geometry", arch="llava", out_dir=str(tmp_path))


def test_a_verdict_is_stored_with_all_that_decided_it(geometry):
    verdict = geometry.claim("entry", entry())
    assert verdict.word == "supported"
    stored = results.read(geometry.save()).claims["entry"]
    assert stored == verdict
    (main, guard), intervals = claim_rules.claim("entry").conditions, stored.intervals()
    assert intervals[main] == Interval(0.4, 0.3, 0.512346, 200)
    assert intervals[guard] == GUARD
    assert (stored.decided_by, stored.seeds, stored.level) == (main, 1, pytest.approx(1 - 0.05 / 11))


def test_what_could_not_be_measured_is_stored_as_such(geometry):
    geometry.claim("entry", entry(guard=None))
    stored = results.read(geometry.save()).claims["entry"]
    assert (stored.word, list(stored.intervals().values())[1]) == ("undecided", None)


def test_a_claim_that_makes_no_sense_is_refused(geometry, report):
    with pytest.raises(ClaimError, match="did you mean 'entry'"):
        geometry.claim("enrty", entry())
    with pytest.raises(ClaimError, match="claim 'entry' is judged in 03_geometry"):
        report.claim("entry", entry())
    with pytest.raises(ClaimError, match="does not have"):
        geometry.claim("entry", {**entry(), "other": None})
    with pytest.raises(ResultsError, match=r"claim 'entry', 'depth that .*' is nan"):
        geometry.claim("entry", entry(depth=Interval(float("nan"), 0, 1, 9)))
    geometry.claim("entry", entry())
    with pytest.raises(ResultsError, match="'entry' is reported twice in 03_geometry"):
        geometry.claim("entry", entry())


def test_a_file_from_before_there_were_claims_is_read(report):
    path = report.save()
    data = json.loads(path.read_text())
    del data["claims"]
    path.write_text(json.dumps(data))
    assert results.read(path).claims == {}


@pytest.fixture
def published(tmp_path, report, geometry):
    """A file with every kind of content, as a run publishes it."""
    geometry.claim("entry", entry())
    report.value("score", 0.5, 0.4, 0.6, 10, chance=0.25)
    report.table("t", pd.DataFrame({"x": [1, 2], "y": [0.5, 1e-9], "kind": ["a1", "b"]}))
    report.timing("fit", 1.25)
    full = report.results.model_copy(
        update={"claims": geometry.results.claims, "input_hash": "12ab", "params": {"seed": 1, "rate": 1e-3}}
    )
    path = tmp_path / "llava" / "02_probing.json"
    path.parent.mkdir()
    path.write_text(full.sealed().dumps())
    return path


def test_one_digit_that_was_changed_is_found_wherever_it_is(published):
    """Of every number, parameter, verdict, second, version and digest."""
    text = published.read_text()
    assert results.read(published).intact
    places = [i for i, character in enumerate(text) if character.isdigit()]
    assert len(places) > 100
    for place in places:
        other = str((int(text[place]) + 1) % 10)
        published.write_text(text[:place] + other + text[place + 1 :])
        with pytest.raises(
            ResultsError, match=r"was changed after it was published|is not a valid results file"
        ):
            results.read(published)


def test_a_digest_that_was_taken_out_makes_it_unpublished(published, monkeypatch):
    data = json.loads(published.read_text())
    published.write_text(json.dumps({**data, "content_digest": ""}))
    monkeypatch.setenv("VLALIGN_RESULTS", str(published.parents[1]))
    assert not results.read(published).intact
    with pytest.raises(ResultsError, match="has no digest"):
        results.load("llava", "02_probing")


@pytest.mark.parametrize("damage", [b"\xff\xfe{}", b"", b"[]", b"null", b"{", b"[" * 100_000])
def test_a_damaged_file_is_one_sentence(published, damage):
    published.write_bytes(damage)
    with pytest.raises(ResultsError, match=r"02_probing\.json is not a valid results file") as caught:
        results.read(published)
    assert "\n" not in str(caught.value)
    published.unlink()
    published.mkdir()
    with pytest.raises(ResultsError, match="cannot be read: Is a directory"):
        results.read(published)


def test_findings_are_kept_in_order_and_are_whole_sentences(report):
    report.finding("One is 0.5 [0.4, 0.6], N = 3: more.")
    report.finding("Another.")
    assert results.read(report.save()).findings == ["One is 0.5 [0.4, 0.6], N = 3: more.", "Another."]
    for wrong in ("no end", "two\nlines.", ""):
        with pytest.raises(ResultsError, match="one line that ends with a full stop"):
            report.finding(wrong)
    with pytest.raises(ResultsError, match="reported twice in 02_probing"):
        report.finding("Another.")


def test_values_are_shown_at_three_decimals(report):
    report.value("a", 0.51234567, 0.4, 0.6, 10, chance=0.25)
    report.value("b", -0.1, -0.2, 0.0, 5)
    assert report.shown().values.tolist() == [
        ["a", "0.512 [0.400, 0.600]", 10, "0.250"],
        ["b", "-0.100 [-0.200, 0.000]", 5, ""],
    ]
