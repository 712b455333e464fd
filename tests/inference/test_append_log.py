"""Append-only lines: a damaged one costs itself alone."""

from pathlib import Path

import pytest

from vlalign_utils.inference.append_log import AppendLog
from vlalign_utils.paths import WriteError

LINES = [{"key": "a", "loss": 0.125, "é": [1, None]}, "two", {"key": "b"}]


def filled(path: Path) -> list[bytes]:
    log = AppendLog(path)
    for line in LINES:
        log.add(line)
    return path.read_bytes().splitlines(keepends=True)


def test_lines_come_back_in_their_order(tmp_path: Path) -> None:
    assert len(filled(tmp_path / "new" / "j")) == 3
    assert AppendLog(tmp_path / "new" / "j").lines == LINES
    assert AppendLog(tmp_path / "none").lines == []


@pytest.mark.parametrize("place", [0, 12, 85, 100, -3])
def test_a_flipped_bit_costs_its_line_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    path = tmp_path / "j"
    first, second, third = filled(path)
    damaged = bytearray(first)
    damaged[place] ^= 1
    path.write_bytes(bytes(damaged) + second + third)
    assert AppendLog(path).lines == LINES[1:]
    assert caplog.messages == [f"{path}, line 1 is damaged: what it held is computed again"]
    caplog.clear()
    AppendLog(path).add(LINES[0])
    assert AppendLog(path).lines == [*LINES[1:], LINES[0]]
    assert not caplog.messages


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_half_a_line_of_a_kill_spoils_no_other(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    path.write_bytes(b"".join(filled(path))[:-cut])
    again = AppendLog(path)
    assert again.lines == LINES[:2]
    again.add("more")
    assert AppendLog(path).lines == [*LINES[:2], "more"]


def test_two_journals_of_one_file_lose_nothing(tmp_path: Path) -> None:
    one, other = AppendLog(tmp_path / "j"), AppendLog(tmp_path / "j")
    one.add(1)
    other.add(2)
    one.add(3)
    assert AppendLog(tmp_path / "j").lines == [1, 2, 3]


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    filled(tmp_path / "j")
    log = AppendLog(tmp_path / "j")
    before = (tmp_path / "j").read_bytes()
    with pytest.raises(TypeError):
        log.add(object())
    assert (tmp_path / "j").read_bytes() == before
    assert log.lines == LINES
    log.path = Path("/dev/full")
    with pytest.raises(WriteError, match=r"/dev/full cannot be written \(.*\): free some space, or choose"):
        log.add(1)
    assert log.lines == LINES
