import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
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


def test_a_folder_holds_a_shard_for_every_batch(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000004.safetensors",
        "00000005.safetensors",
        "00000006.safetensors",
        "key.json",
        "lock",
    ]
    assert json.loads((folder / "key.json").read_text()) == KEY
    plain = load_file(folder / "00000006.safetensors")
    assert all(torch.equal(plain[group], value) for group, value in states([6, 2]).items())


def test_states_lie_in_a_mapped_file_and_changes_reach_no_store(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with ActivationStore(tmp_path, KEY) as store:
        value = store.states()["text"]
        value += 1
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(folder) in mapped.read_text()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert not torch.equal(value, states(list(range(7)))["text"])


def test_another_key_is_another_store(tmp_path: Path) -> None:
    filled(tmp_path)
    for changed in ({"model": "tuned"}, {"groups": ["image"]}, {"items": 8}):
        with ActivationStore(tmp_path, {**KEY, **changed}) as store:
            assert store.finished == set()


def test_the_order_of_a_key_does_not_matter() -> None:
    assert canonical(KEY) == canonical(dict(reversed(KEY.items())))


def test_batches_of_another_key_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What decides is the key in each shard, not what stands in the file that people read."""
    folder = filled(tmp_path)
    with ActivationStore(tmp_path, {**KEY, "model": "other"}) as other:
        other.append([5, 0, 1], states([5, 0, 1], seed=1))
        shutil.copy(other.folder / "00000005.safetensors", folder)
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {2, 3, 4, 6}
    assert caplog.text.count("is damaged: its batch is recorded again") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", None])
def test_a_damaged_key_file_heals(tmp_path: Path, content: bytes | None) -> None:
    path = filled(tmp_path) / "key.json"
    path.unlink() if content is None else path.write_bytes(content)
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == set(range(7))
    assert path.read_text() == canonical(KEY)


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


def test_a_disk_that_fills_up_costs_its_batch_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:7])
        raise OSError(28, "No space left on device")

    with ActivationStore(tmp_path, KEY) as store:
        store.append([0], states([0]))
        before = set(store.folder.iterdir())
        with monkeypatch.context() as full:
            full.setattr(Path, "write_bytes", half)
            with pytest.raises(StoreError, match=r"000001\.safetensors cannot be written \(No space left on"):
                store.append([1], states([1]))
        assert set(store.folder.iterdir()) == before
        assert store.finished == {0}
        store.append([1], states([1]))
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1}


@pytest.mark.parametrize("failing", ["posix_fallocate", "truncate"])
def test_no_room_to_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    filled(tmp_path)
    if failing == "truncate":
        monkeypatch.delattr(os, "posix_fallocate")  # as on macOS
    with ActivationStore(tmp_path, KEY) as store:
        assert torch.equal(store.states()["text"], states(list(range(7)))["text"])
        monkeypatch.setattr(os, failing, full)
        with pytest.raises(StoreError, match=r"no room to read its 0\.0 GB of states \(No space left"):
            store.states()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot be written \(Not a directory\): choose another folder"):
        ActivationStore(tmp_path / "file", KEY)


@pytest.mark.parametrize("place", [0, 9, 40, 150, 400, -1])
def test_one_flipped_bit_costs_its_batch_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    path = filled(tmp_path) / "00000006.safetensors"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {0, 1, 3, 4, 5}
        assert [record.message for record in caplog.records] == [
            f"{path} is damaged: its batch is recorded again"
        ]
        with pytest.raises(StoreError, match="lacks 2 of 7 items: finish the capture first"):
            store.states()
        store.append([2, 6], states([2, 6]))  # in batches of its own
        whole = store.states()
    assert all(torch.equal(whole[group], value) for group, value in states(list(range(7))).items())


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_half_a_shard_is_no_batch(tmp_path: Path, length: int) -> None:
    path = filled(tmp_path) / "00000005.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {2, 3, 4, 6}
        assert not path.exists()


def test_a_shard_under_another_name_is_no_batch(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    shutil.copy(folder / "00000006.safetensors", folder / "00000001.safetensors")
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == set(range(7))
        assert not (folder / "00000001.safetensors").exists()


def test_what_changes_while_the_store_is_open_is_no_state(tmp_path: Path) -> None:
    with ActivationStore(tmp_path, KEY) as store:
        store.append([0], states([0]))
        store.append([1, 2, 3, 4, 5, 6], states([1, 2, 3, 4, 5, 6]))
        path = store.folder / "00000000.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
        with pytest.raises(StoreError, match=r"00000000\.safetensors was damaged after it was written: call"):
            store.states()
    with ActivationStore(tmp_path, KEY) as store:
        assert store.finished == {1, 2, 3, 4, 5, 6}


@pytest.mark.slow
def test_a_kill_in_the_middle_of_an_append_leaves_the_batch_out(tmp_path: Path) -> None:
    """Half of the shard is written, under a name that the next process clears away."""
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from {__name__} import KEY, states
from vlalign_utils.inference.store import ActivationStore

store = ActivationStore(Path({str(tmp_path)!r}), KEY)
store.append([0, 1, 2], states([0, 1, 2]))

def write_some(path, data):
    with path.open("wb") as file:
        file.write(data[:100])
    os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = write_some
store.append([3, 4], states([3, 4], seed=9))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*.partial"))) == 1
    with ActivationStore(tmp_path, KEY) as store:
        assert not list(tmp_path.rglob("*.partial"))
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
        assert not list(store.folder.glob("*.safetensors"))


class _Usage:
    free = 100


def capture_five(folder: Path, last: int = 99) -> tuple[dict[str, Tensor], int]:
    """States of five items in batches of two, and how many forwards that took; dies in the `last` one."""
    vlm, forwards = VLM(build("llava")[0].model, tiny_processor()), 0
    vlm.capabilities()  # whose trial, once per model, is not counted

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


@pytest.mark.slow
def test_a_killed_capture_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, forwards = capture_five(tmp_path / "whole")
    assert forwards == 3
    # By the name it has here: a store knows the model by the names of its hooks too.
    script = f"import sys; sys.path.append({str(ROOT / 'tests')!r}); from {__name__} import *"
    script += f"; capture_five(Path({str(tmp_path / 'killed')!r}), last=3)"
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed, forwards = capture_five(tmp_path / "killed")
    assert forwards == 1  # two batches were kept
    read, forwards = capture_five(tmp_path / "killed")
    assert forwards == 0
    for group in ("image", "random:image"):
        assert torch.equal(resumed[group], whole[group])
        assert torch.equal(read[group], whole[group])
    assert capsys.readouterr().err == 3 * "states: 5/5\n"


def test_a_damaged_batch_is_captured_again_and_no_other(tmp_path: Path) -> None:
    whole, _ = capture_five(tmp_path)
    path = sorted(tmp_path.rglob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    again, forwards = capture_five(tmp_path)
    assert forwards == 1
    assert all(torch.equal(again[group], value) for group, value in whole.items())
