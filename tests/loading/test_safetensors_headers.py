"""What safetensors files hold, read without the weights, and fingerprints of folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import SafetensorsParsingError
from safetensors.torch import load_file
from tiny_hub import write_llava

from vlalign_utils.loading import safetensors_headers
from vlalign_utils.loading.checkpoint import Checkpoint, locate
from vlalign_utils.loading.safetensors_headers import fingerprint, read_headers


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("sharded") / "model", max_shard_size="30KB")


def test_headers_are_those_of_the_weights(hub_folder: Path, sharded: Path) -> None:
    weights = load_file(hub_folder / "model.safetensors")
    found = read_headers(locate(hub_folder))
    assert {n: h.shape for n, h in found.items()} == {n: tuple(w.shape) for n, w in weights.items()}
    assert {(h.dtype, h.file, h.is_real) for h in found.values()} == {("F32", "model.safetensors", True)}
    assert sum(h.nbytes for h in found.values()) == sum(w.numel() * 4 for w in weights.values())
    assert next(iter(found.values())).on_meta().dtype == torch.float32
    pieces = read_headers(locate(sharded))
    assert {n: h.shape for n, h in pieces.items()} == {n: h.shape for n, h in found.items()}
    assert len({h.file for h in pieces.values()}) > 1


def test_damaged_weights_are_noticed(sharded: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    last = sorted(copy.glob("*.safetensors"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=rf"{last.name} holds \d+ of \d+ bytes of weights: download"):
        read_headers(locate(copy))
    last.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")
    with pytest.raises(ValueError, match=rf"{last.name} is no safetensors file, or only the pointer to one"):
        read_headers(locate(copy))
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    (name, entry) = next((n, e) for n, e in header.items() if n != "__metadata__")
    start, end = entry["data_offsets"]
    for changed in (
        {"shape": [*entry["shape"], 2]},
        {"data_offsets": [end, start]},
        {"data_offsets": "none"},
        {"shape": "none"},
        {"dtype": None},
    ):
        text = json.dumps({**header, name: {**entry, **changed}}).encode()
        last.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        with pytest.raises(ValueError, match=rf"{last.name} (has a damaged header|is no safetensors)"):
            read_headers(locate(copy))
    last.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(ValueError, match=rf"{last.name} is no safetensors file.*: download it again"):
        read_headers(locate(copy))
    last.unlink()
    with pytest.raises(ValueError, match=rf"lacks {last.name}, which its model.safetensors.index.json lists"):
        read_headers(locate(copy))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 3}}']
)
def test_a_damaged_index_is_one_sentence(sharded: Path, tmp_path: Path, content: bytes) -> None:
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    (copy / "model.safetensors.index.json").write_bytes(content)
    for read in (read_headers, fingerprint):
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is damaged .*: download"):
            read(locate(copy))


@pytest.mark.parametrize("error", [ConnectionError(), SafetensorsParsingError("cut short")])
def test_headers_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(name: str, revision: str | None) -> None:
        raise error

    monkeypatch.setattr(safetensors_headers, "get_safetensors_metadata", refuse)
    on_hub = Checkpoint("org/model", frozenset(), None, "c0ffee")
    with pytest.raises(ValueError, match=rf"^org/model: the headers .*{type(error).__name__}\), call again"):
        read_headers(on_hub)


@pytest.mark.parametrize("hashed", [safetensors_headers._HASHED, 0])
def test_a_fingerprint_is_that_of_the_content(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: int
) -> None:
    monkeypatch.setattr(safetensors_headers, "_HASHED", hashed)
    copy = Path(shutil.copytree(sharded, tmp_path / "copy"))
    same = fingerprint(locate(sharded))
    (copy / "README.md").write_text("words")
    assert fingerprint(locate(copy)) == same
    shard = min(copy.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x07")
    assert (fingerprint(locate(copy)) == same) is (hashed == 0)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"pad_token_id": 0', '"pad_token_id": 3'))
    assert fingerprint(locate(copy)) != same
