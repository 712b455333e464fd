"""Files and folders that are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlalign_utils.paths import HOST, WriteError, atomic_file, atomic_folder, sha256, sweep, write_atomic


def test_content_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "é.json"
    for content in ("one\n", "two: é\n", b"\xff\x00"):
        write_atomic(path, content)
        assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [p.name for p in path.parent.iterdir()] == ["é.json"]
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writers_of_one_file_do_not_share_a_temporary_one(tmp_path: Path) -> None:
    names = []
    for name in ("seed.0", "seed.1", "seed.0"):
        with atomic_file(tmp_path / name) as partial:
            partial.touch()
            names.append(partial.name)
    with atomic_file(tmp_path / "c") as one, atomic_file(tmp_path / "c") as other:
        one.write_text("1")
        other.write_text("2")
        names += [one.name, other.name]
    assert (tmp_path / "c").read_text() == "1"  # the last to end
    assert len(set(names)) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("it")])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    write_atomic(tmp_path / "a", "before")
    write_file, write_folder = atomic_file(tmp_path / "a"), atomic_folder(tmp_path / "b")
    write_file.__enter__().write_text("half")
    (write_folder.__enter__() / "x").write_text("half")
    for writing in (write_file, write_folder):
        assert not writing.__exit__(type(error), error, None)  # it goes on
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "before")]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    message = (
        r"/a cannot be written \(.*No space left on device.*\): free some space, or choose another folder$"
    )
    for writing in (atomic_file, atomic_folder):
        with pytest.raises(WriteError, match=message), writing(tmp_path / "a"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_never_over_another(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "model") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "new" / "model").exists()
    assert (tmp_path / "new" / "model" / "x").read_text() == "1"
    with (
        pytest.raises(WriteError, match=r"model cannot be written \(Directory not empty\)"),
        atomic_folder(tmp_path / "new" / "model") as partial,
    ):
        (partial / "x").write_text("2")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model"]
    assert (tmp_path / "new" / "model" / "x").read_text() == "1"


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".{name}.{HOST}.{dead.pid}.0123abcd.partial" for name in ("a", "seed.0", "folder")]
    left[0].touch()
    left[1].touch()
    left[2].mkdir()
    (left[2] / "x").touch()
    others = [
        f".a.{HOST}.{os.getpid()}.0123abcd.partial",  # of a process that is writing now
        f".a.{HOST}.1.0123abcd.partial",
        f".a.elsewhere.{dead.pid}.0123abcd.partial",  # of another machine
        ".mine.partial",
        f"a.{dead.pid}",
    ]
    for name in others:
        (tmp_path / name).touch()
    write_atomic(tmp_path / "other", "")
    assert {p.name for p in tmp_path.iterdir()} == {*others, "other"}
    sweep(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, (1, 1))
    first = sha256(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *_: pytest.fail("read again"))
        assert sha256(path) == first
    path.write_bytes(b"changed")
    assert sha256(path) != first
