"""Where a checkpoint is, in a folder, on the hub or in the hub's cache, and whether its files are whole."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tiny_hub import COMMIT, FakeHub, write_cache
from transformers import AutoModelForImageTextToText

from vlalign_utils import load_vlm
from vlalign_utils.loading import checkpoint
from vlalign_utils.loading.checkpoint import locate


@pytest.fixture
def nothing_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def hub_error(kind: type) -> Exception:
    error: Exception = kind.__new__(kind)  # its constructor wants an HTTP response
    Exception.__init__(error, "from the hub")
    return error


class NoRoute(HfHubHTTPError.__bases__[0]):  # type: ignore[misc]
    """As the hub's HTTP library says that nobody answers."""


UNREACHABLE = [
    ConnectionError("down"),
    TimeoutError("slow"),
    OfflineModeIsEnabled("HF_HUB_OFFLINE"),
    hub_error(HfHubHTTPError),  # 503
    hub_error(NoRoute),
]


# --- folders


def test_names_of_folders(hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(hub_folder, tmp_path / "zoo" / "tiny" / "tuned")
    monkeypatch.chdir(tmp_path)
    chain = locate("zoo/tiny")
    assert (chain.name, chain.stage, chain.in_chain) == ("zoo/tiny/tuned", "tuned", True)
    single = locate("zoo/tiny/tuned", "base")
    assert (single.stage, single.in_chain, single.revision) == ("base", False, None)
    with pytest.raises(ValueError, match=r"has no stage 'aligned', it has: tuned"):
        locate("zoo/tiny", "aligned")
    with pytest.raises(ValueError, match=r"stage='aligned': zoo/tiny/tuned is one model, .*'tuned'.*'base'"):
        locate("zoo/tiny/tuned", "aligned")
    monkeypatch.chdir("/")
    monkeypatch.setattr(checkpoint, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="zoo/other: no such folder"):
        locate("zoo/other")
    assert locate("zoo/tiny").folder == tmp_path / "zoo/tiny/tuned"


@pytest.mark.usefixtures("nothing_allocated")
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["config.json"], "has no config.json: it is not a transformers model"),
        (["model.safetensors"], "no safetensors weights; pickled weights are not loaded"),
        (["tokenizer.json", "tokenizer_config.json"], "has no tokenizer"),
        (["processor_config.json"], "has no image processor"),
    ],
)
def test_incomplete_folders(hub_folder: Path, tmp_path: Path, missing: list[str], message: str) -> None:
    copy = Path(shutil.copytree(hub_folder, tmp_path / "copy"))
    for name in missing:
        (copy / name).unlink()
    (copy / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=message):
        load_vlm(copy)


# --- the hub


@pytest.mark.usefixtures("nothing_allocated", "cache")
@pytest.mark.parametrize(
    ("answer", "arguments", "message"),
    [
        (hub_error(RepositoryNotFoundError), {}, "neither a folder here nor a model on the hub"),
        (hub_error(GatedRepoError), {}, "org/model is gated: accept its licence"),
        (hub_error(RevisionNotFoundError), {"revision": "v9"}, "org/model has no revision 'v9'"),
        *[(error, {}, "the hub cannot be reached .*the cache does not hold it$") for error in UNREACHABLE],
        (ConnectionError(), {"revision": "v2"}, "the cache does not hold it at revision 'v2'$"),
        ([], {"stage": "aligned"}, "org/model is one model, not a chain"),
        (["README.md"], {}, "has no config.json"),
        (["config.json", "pytorch_model.bin"], {}, "no safetensors weights"),
        (["config.json", "consolidated.safetensors"], {}, "no safetensors weights"),
        (["config.json", "model.safetensors"], {}, "has no tokenizer"),
        (["config.json", "model.safetensors", "tokenizer.json"], {}, "has no image processor"),
    ],
)
def test_hub_errors_come_before_any_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, arguments: dict[str, Any], message: str
) -> None:
    hub = FakeHub(monkeypatch, tmp_path / "downloads")
    if isinstance(answer, Exception):
        hub.error = answer
        monkeypatch.setattr(checkpoint, "snapshot_download", snapshot_download)
    else:
        hub.repos["org/model"] = tmp_path / "repo"
        hub.repos["org/model"].mkdir()
        for name in answer:
            (tmp_path / "repo" / name).touch()
    with pytest.raises(ValueError, match=message):
        load_vlm("org/model", **arguments)
    assert not hub.downloads


@pytest.mark.usefixtures("nothing_allocated")
def test_a_gated_model_is_found_out_before_any_download(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub tells everyone what a gated repository holds, and gives its files to few."""
    hub = FakeHub(monkeypatch, tmp_path)
    hub.repos["org/model"], hub.gated = hub_folder, "manual"

    def no_access(name: str) -> None:
        raise hub_error(GatedRepoError)

    monkeypatch.setattr(checkpoint, "auth_check", no_access)
    with pytest.raises(ValueError, match="org/model is gated: accept its licence"):
        load_vlm("org/model")
    assert not hub.downloads


def test_a_name_that_no_hub_can_have() -> None:
    with pytest.raises(ValueError, match=r"'org/-not a name-' is neither a folder here nor a valid hub id"):
        load_vlm("org/-not a name-")


def test_a_hub_model_is_pinned_to_its_commit(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = FakeHub(monkeypatch, tmp_path)
    hub.repos["org/model"] = hub_folder
    vlm = load_vlm("org/model", device="cpu")
    assert (vlm.source.name, vlm.source.revision, vlm.source.fingerprint) == ("org/model", COMMIT, None)
    assert f'org/model is not pinned: took revision="{COMMIT}"; pass it' in caplog.text
    assert hub.weights == ["org/model/model.safetensors"]
    caplog.clear()
    load_vlm("org/model", device="cpu", revision=COMMIT)
    assert "pinned" not in caplog.text


def test_a_download_that_breaks_off(
    hub_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch, tmp_path)
    hub.repos["org/model"] = hub_folder

    def small_only(name: str, revision: str, allow_patterns: list[str]) -> str:
        if "model.safetensors" in allow_patterns:
            raise hub_error(NoRoute)
        return hub.snapshot_download(name, revision, allow_patterns)

    monkeypatch.setattr(checkpoint, "snapshot_download", small_only)
    with pytest.raises(ValueError, match=r"org/model: the download broke off \(NoRoute\), call again"):
        load_vlm("org/model", device="cpu")
    monkeypatch.setattr(
        checkpoint, "snapshot_download", lambda n, revision, allow_patterns: str(tmp_path / "org--model")
    )
    with pytest.raises(ValueError, match=r"org/model lacks model.safetensors: the download broke off"):
        load_vlm("org/model", device="cpu")


# --- without a network


@pytest.mark.slow
@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda error: type(error).__name__)
def test_a_cached_model_loads_without_a_network(
    hub_folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    write_cache(cache, hub_folder)

    def unreachable(name: str, revision: str | None = None) -> None:
        raise error

    monkeypatch.setattr(checkpoint, "model_info", unreachable)
    with caplog.at_level(logging.INFO, logger="vlalign"):
        vlm = load_vlm("org/model", device="cpu")
    assert (vlm.n_layers, vlm.source.revision) == (4, COMMIT)
    assert f"the hub cannot be reached: org/model is taken from the cache, revision {COMMIT}" in caplog.text
    assert load_vlm("org/model", device="cpu", revision=COMMIT).source.name == "org/model"


def test_a_partly_cached_model_is_refused(
    hub_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_cache(cache, hub_folder)
    (snapshot / "model.safetensors").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match=r"the cache holds no whole copy of org/model: it has no safetensors"
    ):
        load_vlm("org/model", device="cpu")
