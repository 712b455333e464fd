"""Folders of the cache: built once, whole or not at all, and again when their files changed."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from vlalign_utils.loading.cached_folder import CHECKSUMS, cached_folder
from vlalign_utils.paths import HOST, sha256


class Builder:
    """Writes a file, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "weights").write_bytes(b"content")


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    build = Builder()
    for _ in range(2):
        folder = cached_folder(tmp_path / "cache" / "part", build)
    assert build.times == 1
    assert {path.name for path in folder.iterdir()} == {"weights", CHECKSUMS}
    assert sha256(folder / "weights") == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"


@pytest.mark.parametrize("damage", ["changed", "missing", "no sums", "no JSON", "other JSON"])
def test_a_damaged_folder_is_built_again(tmp_path: Path, damage: str) -> None:
    build = Builder()
    folder = cached_folder(tmp_path / "part", build)
    weights, sums = folder / "weights", folder / CHECKSUMS
    if damage == "changed":
        weights.write_bytes(b"contents")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no sums":
        sums.unlink()
    else:
        sums.write_text("{" if damage == "no JSON" else "[]")
    assert cached_folder(folder, build) == folder
    assert build.times == 2
    assert weights.read_bytes() == b"content"


def test_a_failure_and_a_kill_leave_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_folder(tmp_path / "part", fail)
    assert not (tmp_path / "part").exists()
    half = tmp_path / f".part.{HOST}.{2**22 + 1}.0123abcd.partial"  # of a process that is no more
    half.mkdir()
    (half / "weights").write_bytes(b"half")
    build = Builder()
    assert (cached_folder(tmp_path / "part", build) / "weights").read_bytes() == b"content"
    assert not half.exists()


def test_of_two_that_ask_at_once_one_builds(tmp_path: Path) -> None:
    build, together = Builder(), Barrier(2)

    def ask(_: int) -> Path:
        together.wait()
        return cached_folder(tmp_path / "part", build)

    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(ask, range(2))) == {tmp_path / "part"}
    assert build.times == 1


def test_checksums_of_nothing_vouch_for_nothing(tmp_path: Path) -> None:
    build = Builder()
    folder = cached_folder(tmp_path / "part", build)
    (folder / "checksums.json").write_text("{}")
    cached_folder(folder, build)
    assert build.times == 2
