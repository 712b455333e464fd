"""One safetensors file per batch: exact, checksummed, written whole or not at all."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlalign_utils.inference.shards import (
    DamagedError,
    Shards,
    StoreError,
    digest,
    read_shard,
    write_shard,
)
from vlalign_utils.paths import ROOT, WriteError

TENSORS = {
    "wide": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "half": torch.arange(7).bfloat16(),
    "none": torch.empty(0, 4),
    "one": torch.tensor(2.5),
    "yes": torch.tensor([True, False]),
}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, TENSORS, {"rows": [1, 2], "x": 0.1})
    found, about = read_shard(path)
    assert about == {"rows": [1, 2], "x": 0.1}
    assert found.keys() == TENSORS.keys()
    plain = load_file(path)
    for name, value in TENSORS.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert torch.equal(plain[name], value)
        assert found[name].data_ptr() % 64 == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_tensors_that_share_memory_or_are_views_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    views = {"a": whole, "b": whole, "c": whole[1], "d": whole.T, "e": whole[:, 2]}
    write_shard(tmp_path / "a.safetensors", views, None)
    found, _ = read_shard(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], value) for name, value in views.items())


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_shard(path, {"a": torch.arange(5.0), "b": torch.ones(2, 2)}, {"rows": [0]})
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        with pytest.raises(DamagedError, match=r"a\.safetensors is damaged: "):
            read_shard(path)


def test_a_file_that_is_no_shard_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for metadata in (None, {"about": "1"}, {"about": "{", "sha256": digest({}, "{")}):
        save_file({}, path, metadata)
        with pytest.raises(DamagedError, match=r"a\.safetensors is damaged: "):
            read_shard(path)
    with pytest.raises(FileNotFoundError):
        read_shard(tmp_path / "b.safetensors")


def test_a_digest_sees_values_names_types_shapes_and_the_text() -> None:
    one = {"a": torch.arange(4.0)}
    others = [
        digest({"a": torch.arange(4.0) + 1}),
        digest({"b": torch.arange(4.0)}),
        digest({"a": torch.arange(4.0).view(torch.int32)}),
        digest({"a": torch.arange(4.0).reshape(2, 2)}),
        digest(one, "text"),
    ]
    assert digest(one) == digest({"a": torch.arange(8.0)[:4]})
    assert len({digest(one), *others}) == 6


def test_a_folder_of_shards_drops_what_is_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = Shards(tmp_path / "new")
    assert shards.read("0") is None
    sizes = [shards.write(name, TENSORS, name) for name in ("1", "0")]
    assert shards.names() == ["0", "1"]
    assert shards.size == sum(sizes) == sum(p.stat().st_size for p in shards.folder.iterdir())
    path = shards.path("0")
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    assert shards.read("0") is None
    assert caplog.messages == [f"{path} is damaged: its batch is recorded again"]
    assert shards.names() == ["1"]
    assert shards.size == sizes[0] == Shards(shards.folder).size
    assert shards.read("1")[1] == "1"


def test_a_shard_that_does_not_fit_is_not_written(tmp_path: Path) -> None:
    shards = Shards(tmp_path)
    size = shards.write("0", TENSORS, None)
    assert shards.write("1", TENSORS, None, room=size - 1) == 0
    assert shards.names() == ["0"]
    assert shards.write("1", TENSORS, None, room=size) == size


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.folder cannot be made \(Not a directory\): choose another"):
        Shards(tmp_path / "file" / "folder")
    with pytest.raises(WriteError, match=r"cannot be written \(File exists\): free some space, or choose"):
        write_shard(tmp_path / "file" / "a", TENSORS, None)


def test_a_damaged_shard_that_cannot_be_deleted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise OSError(30, "Read-only file system")

    shards = Shards(tmp_path)
    shards.path("0").write_bytes(b"damaged")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StoreError, match=r"is damaged and cannot be deleted \(Read-only file system\)"):
        shards.read("0")


@pytest.mark.slow
def test_a_disk_that_fills_up_leaves_nothing_of_a_shard(tmp_path: Path) -> None:
    """As on a full disk, the system refuses to write beyond a size, in Python and in safetensors alike."""
    script = f"""
import resource, torch
from pathlib import Path
from vlalign_utils.inference.shards import Shards, StoreError, write_shard
from vlalign_utils.paths import WriteError

folder = Path({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]}))
for write, kind in (
    (lambda: Shards(folder).write("0", {{"a": torch.zeros(100000)}}, 0), StoreError),
    (lambda: write_shard(folder / "1", {{"a": torch.zeros(100000)}}, 0), WriteError),
):
    try:
        write()
    except kind as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.partition(" (")[0] for line in done.stdout.splitlines()] == [
        f"{tmp_path / '0.safetensors'} cannot be written",
        f"{tmp_path / '1'} cannot be written",
    ]
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []
