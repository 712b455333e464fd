import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_models import build, tiny_processor
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.inference.states import collect
from vlalign_utils.inference.store import ActivationStore, StoreError, canonical

KEY = {"model": "tiny", "groups": ["image", "text"], "items": 7}
ROOT = Path(__file__).resolve().parents[2]


def states(rows: list[int], dtype: torch.dtype = torch.float16, seed: int = 0) -> dict[str, Tensor]:
    """Three layers of width 5 in which every item has its own numbers."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(2, 3, 7, 5, generator=generator).to(dtype)
    return {"text": whole[0][:, rows], "image": whole[1][:, rows]}


def filled(folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """A finished store's subfolder."""
    with ActivationStore(folder, KEY) as store:
        for rows in ([5, 0, 1], [6, 2], [4, 3]):
            store.append(rows, states(rows, dtype))
        return store.folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_batches_in_any_order_come_back_in_item_order(tmp_path: Path, dtype: torch.dtype) -> None:
    filled(tmp_path, dtype)
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == set(range(7))
        kept = store.states()
    for group, value in states(list(range(7)), dtype).items():
        assert kept[group].dtype == dtype
        assert torch.equal(kept[group], value)


def test_a_folder_holds_plain_files_named_by_its_key(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "journal.jsonl",
        "key.json",
        "lock",
        "states.bin",
    ]
    assert json.loads((folder / "key.json").read_text()) == KEY
    assert (folder / "states.bin").stat().st_size == 2 * 3 * 7 * 5 * 2


def test_reading_maps_the_file_and_never_writes_it(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    before = (folder / "states.bin").read_bytes()
    with ActivationStore(tmp_path, KEY) as store:
        value = store.states()["text"]
        value += 1
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(folder / "states.bin") in mapped.read_text()
    assert (folder / "states.bin").read_bytes() == before
    assert not torch.equal(value, states(list(range(7)))["text"])


def test_another_key_is_another_store(tmp_path: Path) -> None:
    filled(tmp_path)
    for changed in ({"model": "tuned"}, {"groups": ["image"]}, {"items": 8}):
        with ActivationStore(tmp_path, {**KEY, **changed}) as store:
            assert store.finished == set()


def test_the_order_of_a_key_does_not_matter() -> None:
    assert canonical(KEY) == canonical(dict(reversed(KEY.items())))


def test_a_key_is_compared_in_full(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (folder / "key.json").write_text(canonical({**KEY, "model": "other"}))
    with pytest.raises(StoreError, match=r"key\.json is not the key that its folder is named by: delete "):
        ActivationStore(tmp_path, KEY)
    (folder / "key.json").unlink()
    with pytest.raises(StoreError, match=r"key\.json is not the key"):
        ActivationStore(tmp_path, KEY)


@pytest.mark.parametrize("key", [{"f": print}, {"n": float("nan")}, {"t": torch.float16}])
def test_a_key_must_be_plain(tmp_path: Path, key: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="key must be plain JSON"):
        ActivationStore(tmp_path, key, 3)
    assert not list(tmp_path.iterdir())


def test_the_number_of_items_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="number of its items, 1 or more, got None"):
        ActivationStore(tmp_path, {"model": "tiny"})
    with pytest.raises(StoreError, match="is for 7 items, not 8: change the key"):
        ActivationStore(tmp_path, KEY, filled(tmp_path) and 8)


def test_a_store_that_cannot_be_read_is_not_sealed(tmp_path: Path) -> None:
    journal = filled(tmp_path) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().removesuffix(b'"sealed"\n'))
    with pytest.raises(StoreError, match="is for 7 items"):
        ActivationStore(tmp_path, KEY, 8)
    assert b"sealed" not in journal.read_bytes()


def test_a_disk_that_fills_up_spoils_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(data: bytes, file: int, offset: int | None = None) -> None:
        os.write(file, data[:7])
        raise OSError(28, "No space left on device")

    with ActivationStore(tmp_path, KEY) as store:
        store.append([0], states([0]))
        with monkeypatch.context() as full:
            full.setattr("vlalign_utils.inference.append_log.write_at", half)
            with pytest.raises(OSError, match="No space left"):
                store.append([1], states([1]))
        assert store.finished == {0}
        store.append([1], states([1]))
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1}


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = filled(tmp_path) / "states.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with (
        ActivationStore(tmp_path, KEY) as store,
        pytest.raises(
            StoreError, match=r"states\.bin is damaged \(item \d or its batch .*: delete .* and capture"
        ),
    ):
        store.states()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("journal.jsonl", lambda b: b.replace(b'"rows": [6', b'"rows": [9')),
        ("journal.jsonl", lambda b: b.replace(b'"rows": [6', b'"rows": [0')),
        ("journal.jsonl", lambda b: b.replace(b"{", b"[", 1)),
        ("journal.jsonl", lambda b: b.replace(b"layout", b"outlay")),
        ("journal.jsonl", lambda b: b.replace(b"float16", b"float61")),
        ("journal.jsonl", lambda b: b.replace(b'"crc32": {"image"', b'"crc32": {"imago"', 1)),
        ("states.bin", lambda b: b[:-1]),
        ("states.bin", lambda b: b""),
    ],
)
def test_other_damage_is_noticed_on_opening(tmp_path: Path, name: str, change: Any) -> None:
    path = filled(tmp_path) / name
    content = path.read_bytes()
    assert change(content) != content
    path.write_bytes(change(content))
    with pytest.raises(StoreError, match=r"is damaged.*: delete "):
        ActivationStore(tmp_path, KEY)
    with pytest.raises(StoreError, match="is damaged"):  # and the lock was let go
        ActivationStore(tmp_path, KEY)


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_half_a_line_is_no_batch(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path) / "journal.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b'"sealed"\n')[:-cut])
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1, 2, 5, 6}
        with pytest.raises(StoreError, match="lacks 2 of 7 items: finish the capture first"):
            store.states()
        store.append([3, 4], states([3, 4]))
    with ActivationStore(tmp_path, KEY) as store:
        assert torch.equal(store.states()["text"], states(list(range(7)))["text"])


def crashed(folder: Path, sealed: bool) -> None:
    """A store whose second batch had a line in the journal but no states on the disk."""
    store = ActivationStore(folder, KEY)
    store.append([0, 1], states([0, 1]))
    store.seal()
    store.append([2, 3, 4], states([2, 3, 4]))
    store.append([5], states([5]))
    path, journal = store.folder / "states.bin", store.folder / "journal.jsonl"
    lines = journal.read_bytes()
    store.close()
    content = bytearray(path.read_bytes())
    content[2 * 5 * 2 : 3 * 5 * 2] = bytes(10)  # item 2, layer 0
    path.write_bytes(content)
    if not sealed:
        journal.write_bytes(lines)


def test_after_a_crash_of_the_machine_what_was_sealed_counts(tmp_path: Path) -> None:
    crashed(tmp_path, sealed=False)
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1}
        store.append([2, 3, 4, 5, 6], states([2, 3, 4, 5, 6]))
        assert torch.equal(store.states()["image"], states(list(range(7)))["image"])


def test_sealed_batches_that_changed_are_an_error(tmp_path: Path) -> None:
    crashed(tmp_path, sealed=True)
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1, 2, 3, 4, 5}
        store.append([6], states([6]))
        with pytest.raises(StoreError, match=r"states\.bin is damaged \(item 2 or its batch"):
            store.states()


def test_a_crash_of_the_machine_while_it_was_made_leaves_a_new_store(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (folder / "journal.jsonl").write_bytes(
        (folder / "journal.jsonl").read_bytes().replace(b'"sealed"\n', b"")
    )
    (folder / "states.bin").write_bytes(b"")
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == set()
        store.append(list(range(7)), states(list(range(7)), torch.float32))
        assert store.states()["text"].dtype == torch.float32


def test_long_captures_are_sealed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlalign_utils.inference.store.SEAL_SECONDS", 0.0)
    with ActivationStore(tmp_path, KEY) as store:
        for row in (0, 1):
            store.append([row], states([row]))
        assert (store.folder / "journal.jsonl").read_text().count('"sealed"') == 2


def test_a_kill_while_it_was_made_leaves_a_new_store(tmp_path: Path) -> None:
    path = filled(tmp_path) / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:20])
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == set()
        store.append([1], states([1], torch.float32))


def test_a_kill_in_the_middle_of_an_append_leaves_the_batch_out(tmp_path: Path) -> None:
    """Some of the states are in the file, and their line is not."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from pathlib import Path
from test_store import KEY, states
from vlalign_utils import statefile
from vlalign_utils.store import ActivationStore

store = ActivationStore(Path({str(tmp_path)!r}), KEY)
store.append([0, 1, 2], states([0, 1, 2]))
write, calls = statefile.write_at, []

def write_some(*given):
    write(*given)
    calls.append(1)
    if len(calls) == 4:  # of six, a group and a layer each
        os.kill(os.getpid(), signal.SIGKILL)

statefile.write_at = write_some
store.append([3, 4], states([3, 4], seed=9))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1, 2}
        store.append([3, 4, 5, 6], states([3, 4, 5, 6]))
        kept = store.states()
    assert all(torch.equal(kept[group], value) for group, value in states(list(range(7))).items())


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with ActivationStore(tmp_path, KEY) as store:
        with pytest.raises(StoreError, match="is open already: wait for that process to end, or close the"):
            ActivationStore(tmp_path, KEY)
        with ActivationStore(tmp_path, {**KEY, "model": "other"}):
            pass
        store.close()
        with ActivationStore(tmp_path, KEY):
            pass


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([0], states([0]), "item 0 is in the store already"),
        ([2, 2], states([2, 2]), "expected different numbers from 0 to 6"),
        ([7], states([1]), "expected different numbers from 0 to 6"),
        ([-1], states([1]), "expected different numbers from 0 to 6"),
        ([], states([]), "expected different numbers"),
        ([2, 3], states([2]), r"there are 2 rows, expected states \[layers, 2, d\]"),
        ([2], states([2], torch.float32), "states look like .*float32.*those in the store like .*float16"),
        ([2], {"text": states([2])["text"]}, "states look like .*'text',.*those in the store like"),
        ([2], {}, "0 different shapes and dtypes"),
        ([2], {g: v.double() for g, v in states([2]).items()}, "states are float64, expected one of float32"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, rows: list[int], given: dict[str, Tensor], message: str
) -> None:
    with ActivationStore(tmp_path, KEY) as store:
        store.append([0, 1], states([0, 1]))
        with pytest.raises(StoreError, match=message):
            store.append(rows, given)
        assert store.finished == {0, 1}


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, KEY)
    store.close()
    store.close()
    for use in (store.states, lambda: store.append([0], states([0]))):
        with pytest.raises(StoreError, match="is closed: open the store again"):
            use()


def test_a_disk_too_small_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: _Usage)
    with ActivationStore(tmp_path, KEY) as store:
        with pytest.raises(StoreError, match=r"needs 0\.0 GB, but 0\.0 GB are free there: free some"):
            store.append([0], states([0]))
        assert not (store.folder / "states.bin").stat().st_size


class _Usage:
    free = 100


def capture_five(folder: Path, last: int = 99) -> tuple[dict[str, Tensor], int]:
    """States of five items in batches of two, and how many forwards that took; dies in the `last` one."""
    vlm, forwards = VLM(build("llava")[0].model, tiny_processor()), 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1
        if forwards == last:
            os.kill(os.getpid(), signal.SIGKILL)

    prompts = ["red", "what colour", "what colour is the shape ?", "blue circle", "is the square blue ?"]
    images = [Image.new("RGB", (16, 16), name) for name in ("red", "green", "blue", "white", "black")]
    with vlm.layers[-1].register_forward_hook(count):
        states = collect(
            vlm, prompts, images, ["image", "random:image"], 2, dtype=torch.float16, store=folder
        )
    return states, forwards


def test_a_killed_capture_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, forwards = capture_five(tmp_path / "whole")
    assert forwards == 3
    script = f"from test_store import *; capture_five(Path({str(tmp_path / 'killed')!r}), last=3)"
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "tests", check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed, forwards = capture_five(tmp_path / "killed")
    assert forwards == 1  # two batches were kept
    read, forwards = capture_five(tmp_path / "killed")
    assert forwards == 0
    for group in ("image", "random:image"):
        assert torch.equal(resumed[group], whole[group])
        assert torch.equal(read[group], whole[group])
    assert capsys.readouterr().out == 3 * "states: 5/5\n"
