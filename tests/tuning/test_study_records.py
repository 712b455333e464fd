import json

import pytest

from vlalign_utils.tuning import study_records
from vlalign_utils.tuning.study_records import Records


def never() -> dict:
    raise AssertionError("it was on record")


def test_what_was_made_is_not_made_again(tmp_path):
    kept = Records(tmp_path / "none.jsonl", tmp_path / "a" / "journal.jsonl")
    made = kept.get({"what": "run", "seed": 1}, lambda: {"loss": 0.5})
    assert made["loss"] == 0.5
    assert kept.get({"seed": 1, "what": "run"}, never) == made
    again = Records(tmp_path / "none.jsonl", tmp_path / "a" / "journal.jsonl")  # after a kill
    assert again.get({"what": "run", "seed": 1}, never) == made


def test_another_question_has_another_answer(tmp_path):
    kept = Records(tmp_path / "none.jsonl", tmp_path / "journal.jsonl")
    kept.get({"seed": 1}, lambda: {"loss": 0.5})
    assert kept.get({"seed": 2}, lambda: {"loss": 0.7})["loss"] == 0.7
    assert [r["loss"] for r in kept.used.values()] == [0.5, 0.7]


def test_committed_records_are_read_and_never_written(tmp_path):
    committed = tmp_path / "c.jsonl"
    first = Records(tmp_path / "none", tmp_path / "one.jsonl").get({"seed": 1}, lambda: {"loss": 1})
    committed.write_text(json.dumps(first) + "\n")
    kept = Records(committed, tmp_path / "two.jsonl")
    assert kept.get({"seed": 1}, never) == first
    kept.get({"seed": 2}, lambda: {"loss": 2})
    assert committed.read_text() == json.dumps(first) + "\n"


def test_what_cannot_be_a_key_is_refused(tmp_path):
    kept = Records(tmp_path / "none", tmp_path / "journal.jsonl")
    with pytest.raises(TypeError, match="plain JSON"):
        kept.get({"seed": object()}, dict)


def test_local_records_belong_to_the_code_that_made_them(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(study_records, "PACKAGE", tmp_path)
    study_records._code.cache_clear()
    before = study_records._code()
    (tmp_path / "a.py").write_text("x = 2\n")
    assert study_records._code() == before  # that of the process, whatever is edited meanwhile
    study_records._code.cache_clear()
    assert study_records._code() != before
    study_records._code.cache_clear()


def test_records_of_several_studies_are_found(tmp_path):
    for name in ("a", "b"):
        kept = Records(tmp_path / "none", tmp_path / f"{name}.log")
        record = kept.get({"of": name}, dict)
        (tmp_path / name).write_text(json.dumps(record) + "\n")
    both = Records([tmp_path / "a", tmp_path / "b", tmp_path / "none"], tmp_path / "new.log")
    assert [both.get({"of": name}, lambda: 1 / 0)["of"] for name in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"seed": 1}', b"\xff", b""])
def test_a_damaged_line_of_committed_records_is_named(tmp_path, line):
    committed = tmp_path / "c.jsonl"
    committed.write_bytes(b'{"key": "a"}\n' + line + b'\n{"key": "b"}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl, line 2 is no record .*: restore the file from git, or"):
        Records(committed, tmp_path / "journal.jsonl")
