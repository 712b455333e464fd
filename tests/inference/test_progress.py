import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlalign_utils.inference.progress import progress
from vlalign_utils.pipeline.execute import kernel_environment


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test, since pytest puts its own stream in place before each."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def slow(batches: list[list[int]]) -> Iterator[list[int]]:
    for batch in batches:
        time.sleep(0.15)
        yield batch


def test_prints_one_line_that_never_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "layers")) == [0, 1, 2]
    assert capsys.readouterr().err == "layers: 3/3\n"


def test_total_may_be_given_for_a_generator(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(progress((n for n in range(3)), "layers", total=3)) == 3
    assert capsys.readouterr().err == "layers: 3/3\n"


def test_a_loop_left_early_claims_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(3), "layers"):
        break
    assert capsys.readouterr() == ("", "")


def test_a_page_has_no_line_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TQDM_DISABLE", kernel_environment(tmp_path)["TQDM_DISABLE"])
    assert list(progress(range(3), "layers")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_batches_count_by_their_items(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress([[1, 2], [3]], "items", size=len))
    assert capsys.readouterr().err == "items: 3/3\n"


def test_a_resumed_loop_prints_what_a_whole_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress(iter([[3]]), "items", total=3, size=len, done=2))
    assert capsys.readouterr().err == "items: 3/3\n"


def test_a_terminal_shows_rate_and_remaining_time_in_items(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = terminal(monkeypatch)
    list(progress(slow([[0] * 5, [0] * 5, [0] * 10]), "items", total=20, size=len))
    shown = stream.getvalue()
    assert "items:" in shown
    assert "10/20 [00:00<00:00" in shown  # time so far, time that remains
    assert "item/s]" in shown
    assert "20/20" in shown
    assert capsys.readouterr().out == ""


def test_a_terminal_starts_where_an_earlier_run_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = terminal(monkeypatch)
    list(progress(slow([[0] * 5]), "items", total=20, size=len, done=15))
    assert "15/20" in stream.getvalue()
    assert "20/20" in stream.getvalue()
