import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from tiny_models import Inputs, build
from torch import Tensor, nn

from vlalign_utils import VLM
from vlalign_utils.inference.shards import StoreError
from vlalign_utils.tuning.lora import adapted
from vlalign_utils.tuning.needed_tensors import leaves
from vlalign_utils.tuning.prefix_cache import Prefixes


def made(family: str = "llava", n: int = 3) -> tuple[VLM, list[Inputs]]:
    """A model whose upper half is trained, and batches that differ in all their values."""
    vlm, inputs = build(family)
    several = [
        {name: v + i / 4 if v.is_floating_point() else v for name, v in inputs.items()} for i in range(n)
    ]
    for i, one in enumerate(several):
        one["input_ids"] = torch.where(one["input_ids"] == 5, 6 + i, one["input_ids"])
    return vlm, several


@contextmanager
def training(vlm: VLM, start: int) -> Iterator[list[nn.Parameter]]:
    vlm.model.requires_grad_(False)
    weights = list(vlm.layers[start:].parameters())
    for parameter in weights:
        parameter.requires_grad_(True)
    yield weights


def gradients(logits: Tensor, weights: list[nn.Parameter]) -> list[Tensor | None]:
    return list(torch.autograd.grad(logits.square().sum(), weights, allow_unused=True))


def same(one: list[Tensor | None], other: list[Tensor | None]) -> bool:
    return any(a is not None and bool(a.any()) for a in one) and all(
        (a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def check(vlm: VLM, stored: Prefixes, batches: list[Inputs]) -> None:
    with training(vlm, stored.start) as weights:
        for i, inputs in enumerate(batches):
            plain = vlm.model(**inputs, use_cache=False).logits
            replayed = vlm.replay(stored.run(i), start=stored.start).logits
            assert torch.equal(plain, replayed)
            assert same(gradients(plain, weights), gradients(replayed, weights))


def files(stored: Prefixes) -> list[Path]:
    return sorted(stored.folder.glob("*.safetensors"))


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every run of a model's vision tower."""
    calls: list[int] = []

    def counted(family: str = "llava", n: int = 3) -> tuple[VLM, list[Inputs]]:
        vlm, batches = _made(family, n)
        tower = vlm.model.model.vision_tower
        tower.register_forward_hook(lambda *_: calls.append(1))
        return vlm, batches

    _made = made
    monkeypatch.setitem(globals(), "made", counted)
    return calls


# DeepStack of qwen3_vl adds image features after layers 0 and 1; mllama's cross-attention is above 0.
@pytest.mark.parametrize(
    ("family", "start"),
    [("llava", 0), ("llava", 2), ("llava", 3), ("gemma3", 2), ("qwen3_vl", 1), ("mllama", 1), ("gemma4", 0)],
)
def test_gradients_are_those_of_the_ordinary_forward(family: str, start: int, tmp_path: Path) -> None:
    vlm, batches = made(family, 2)
    for _ in range(2):  # recorded, and read back
        check(vlm, Prefixes(vlm, batches, start, tmp_path), batches)


@pytest.mark.slow
def test_what_is_not_kept_spoils_no_gradient_where_deepstack_reaches_the_last_layer(tmp_path: Path) -> None:
    """What the forward does not read may meet the gradient, as a factor of 0: there NaN would spread."""
    vlm, batches = made("qwen3_vl", 2)
    shallow = vlm.model.model.language_model
    shallow.layers = shallow.layers[:2]
    shallow.config.num_hidden_layers = 2
    vlm = VLM(vlm.model)
    batches = [{**one, "logits_to_keep": 2} for one in batches]
    for start in (0, 1):
        for _ in range(2):  # recorded, and read back
            check(vlm, Prefixes(vlm, batches, start, tmp_path), batches)


@pytest.mark.parametrize("start", [-1, 5])
def test_a_start_that_is_no_layer_is_refused(start: int, tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    with pytest.raises(IndexError, match=f"start is {start}"):
        Prefixes(vlm, batches, start, tmp_path)


def test_cross_attention_above_the_start_reads_the_image_again() -> None:
    vlm, _ = made("mllama")
    assert any(k is not None and k >= 1 for k in vlm.anatomy.cross_attentions().values())


@pytest.mark.slow_except("3")
@pytest.mark.parametrize("start", [1, 3])
def test_only_the_stream_is_kept(start: int, tmp_path: Path) -> None:
    vlm, batches = made()
    stored = Prefixes(vlm, batches, start, tmp_path)
    stored.run(0)
    stream = vlm.record(stop=start, **batches[0]).resid[start]
    with safe_open(files(stored)[0], "pt") as file:
        kept = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    wide = [value for value in kept if value.shape == stream.shape]
    assert len(wide) == 1
    assert torch.equal(wide[0], stream)
    # The rest is a mask and what rotary positions give, the same for every row.
    assert sum(value.nbytes for value in kept) <= stream.nbytes + 2 * 14 * 8 * 4 + 2 * 14 * 8


def test_deepstack_features_are_kept_only_where_they_are_read(tmp_path: Path) -> None:
    vlm, batches = made("qwen3_vl", 1)
    widths = []
    for start in (1, 3):
        stored = Prefixes(vlm, batches, start, tmp_path)
        stored.run(0)
        with safe_open(files(stored)[0], "pt") as file:
            shapes = [file.get_tensor(name).shape for name in file.keys()]  # noqa: SIM118
            widths.append(sum(shape[-1:] == (vlm.d_model,) for shape in shapes))
    assert widths == [3, 1]  # what leaves layer 0, what is added to it, and what is added after layer 1


@pytest.mark.slow
def test_what_is_read_lies_in_memory_as_what_is_computed_does(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # with several, kernels differ where memory is not aligned
    try:
        vlm, batches = made("mllama", n=1)
        stored = Prefixes(vlm, batches, 1, tmp_path)
        for _ in range(2):  # recorded, and read back
            check(vlm, stored, batches)
    finally:
        torch.set_num_threads(threads)
    places = [leaf.data_ptr() for _, leaf in leaves(stored.run(0)) if isinstance(leaf, Tensor)]
    assert all(place % 64 == 0 for place in places)


def test_files_of_an_earlier_process_are_read_and_the_tower_is_not_run(
    tmp_path: Path, towers: list[int]
) -> None:
    vlm, batches = made()
    first = Prefixes(vlm, batches, 2, tmp_path)
    before = len(towers)
    for i in range(2):
        first.run(i)
    assert len(towers) == before + 1  # batch 0 was recorded when it was tried
    for i in range(2):
        first.run(i)
    assert len(towers) == before + 1
    again, batches = made()  # as another process would: the same weights in another model
    second = Prefixes(again, batches, 2, tmp_path)
    assert second.folder == first.folder
    assert second.size == sum(path.stat().st_size for path in files(first))
    before = len(towers)
    for i in range(2):
        second.run(i)
    assert len(towers) == before
    second.run(2)
    assert len(towers) == before + 1
    assert [path.name for path in files(second)] == [f"00000{i}.safetensors" for i in range(3)]


@pytest.mark.slow
def test_another_model_or_other_batches_have_files_of_their_own(tmp_path: Path) -> None:
    vlm, batches = made()
    folders = [Prefixes(vlm, batches, 2, tmp_path).folder, Prefixes(vlm, batches, 1, tmp_path).folder]
    folders.append(Prefixes(vlm, batches[:2], 2, tmp_path).folder)
    pixels = batches[1]["pixel_values"].clone()
    pixels[1, 2, 3, 4] += 1
    folders.append(Prefixes(vlm, [batches[0], {**batches[1], "pixel_values": pixels}], 2, tmp_path).folder)
    with torch.no_grad():
        vlm.layers[0].mlp.down_proj.weight[0, 0] += 1
    folders.append(Prefixes(vlm, batches, 2, tmp_path).folder)
    folders.append(Prefixes(build("llava", "eager")[0], batches, 2, tmp_path).folder)
    with torch.autocast("cpu", torch.bfloat16):
        folders.append(Prefixes(vlm, batches, 2, tmp_path).folder)
    assert len(set(folders)) == len(folders)


@pytest.mark.slow
def test_a_limit_is_kept_and_what_does_not_fit_is_run_again(tmp_path: Path, towers: list[int]) -> None:
    vlm, batches = made()
    whole = Prefixes(vlm, batches, 2, tmp_path / "whole")
    whole.run(0)
    one = files(whole)[0].stat().st_size
    for limit, count in ((0, 0), (one - 1, 0), (one, 1), (int(2.5 * one), 2)):
        bounded = Prefixes(vlm, batches, 2, tmp_path / str(limit), limit)
        for i in range(3):
            bounded.run(i)
        before = len(towers)
        for i in range(3):
            bounded.run(i)
        assert len(towers) - before == 3 - count
        assert len(files(bounded)) == count
        assert sum(path.stat().st_size for path in files(bounded)) <= limit
    check(vlm, bounded, batches)


def test_any_flipped_byte_is_found_and_the_batch_recorded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, towers: list[int]
) -> None:
    vlm, batches = made(n=1)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    stored.run(0)
    (path,) = files(stored)
    good, size = path.read_bytes(), stored.size
    expected = vlm.model(**batches[0], use_cache=False).logits
    header = good.index(b"}", 300)
    plan = good.index(b"about")
    for place in (0, 9, plan, plan + 12, plan + 40, header // 2, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        stored._shards._checked.clear()  # as a new process
        caplog.clear()
        before = len(towers)
        run = stored.run(0)
        assert len(towers) == before + 1
        assert "is damaged: its batch is recorded again" in caplog.text
        assert torch.equal(vlm.replay(run, start=2).logits, expected)
        assert stored.size == size == path.stat().st_size
        before = len(towers)
        stored.run(0)
        assert len(towers) == before


@pytest.mark.slow
def test_a_half_written_file_is_recorded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vlm, batches = made(n=1)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    stored.run(0)
    (path,) = files(stored)
    good = path.read_bytes()
    for length in (0, 5, 200, len(good) - 1):
        path.write_bytes(good[:length])
        stored = Prefixes(vlm, batches, 2, tmp_path)
        caplog.clear()
        stored.run(0)
        assert "is damaged" in caplog.text
        caplog.clear()
        check(vlm, stored, batches)
        assert not caplog.text


def test_a_kill_while_writing_leaves_no_file_under_the_real_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, batches = made(n=1)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    with monkeypatch.context() as patch:

        def killed(*paths: Path) -> None:
            raise KeyboardInterrupt

        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            stored.run(0)
    assert files(stored) == []
    check(vlm, stored, batches)


def test_a_disk_that_fills_up_is_an_error_that_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, batches = made(n=1)
    stored = Prefixes(vlm, batches, 2, tmp_path)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match=r"cannot be written \(No space left on device\): free some space"):
        stored.run(0)
    assert list(stored.folder.iterdir()) == []


def test_a_disk_too_small_is_refused_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, batches = made()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=5000))
    with pytest.raises(StoreError, match=r"needs about 0\.0 GB for recorded prefixes, but 0\.0 GB are free"):
        Prefixes(vlm, batches, 2, tmp_path)
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert Prefixes(vlm, batches, 2, tmp_path, limit=4000).limit == 4000


def test_weights_changed_below_the_start_are_refused_and_above_they_are_welcome(tmp_path: Path) -> None:
    vlm, batches = made(n=2)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    stored.run(0)
    with torch.no_grad():
        vlm.layers[2].mlp.up_proj.weight.mul_(2)
    check(vlm, stored, batches)
    with torch.no_grad():
        vlm.layers[1].mlp.up_proj.weight.mul_(2)
    for i in range(2):
        with pytest.raises(ValueError, match="weights below layer 2 have changed since they were recorded"):
            stored.run(i)


def test_weights_written_with_the_same_values_are_welcome(tmp_path: Path, towers: list[int]) -> None:
    vlm, batches = made(n=1)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    stored.run(0)
    before = len(towers)
    with torch.no_grad():  # as DistributedDataParallel does when it begins
        for parameter in vlm.model.parameters():
            parameter.copy_(parameter.clone())
    stored.run(0)
    assert len(towers) == before


def test_what_asks_for_gradients_is_as_it_was_and_nothing_does_while_recording(tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    next(vlm.model.parameters()).requires_grad_(False)
    asked = [p.requires_grad for p in vlm.model.parameters()]
    seen: list[bool] = []
    vlm.layers[1].register_forward_hook(
        lambda *_: seen.extend(p.requires_grad for p in vlm.model.parameters())
    )
    stored = Prefixes(vlm, batches, 2, tmp_path)
    stored.run(0)
    assert seen
    assert not any(seen)
    assert [p.requires_grad for p in vlm.model.parameters()] == asked
    vlm.layers[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Prefixes(vlm, batches, 2, tmp_path)
    assert [p.requires_grad for p in vlm.model.parameters()] == asked


def test_weights_replaced_below_the_start_are_refused(tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    projection = vlm.layers[0].mlp.up_proj
    projection.weight.data = projection.weight.data * 2
    with pytest.raises(ValueError, match="have changed"):
        stored.run(0)


@pytest.mark.parametrize("where", ["below", "above"])
def test_dropout_is_refused(where: str, tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    k = 0 if where == "below" else 3
    vlm.layers[k].mlp.down_proj = nn.Sequential(vlm.layers[k].mlp.down_proj, nn.Dropout(0.5)).train()
    with pytest.raises(ValueError, match=r"does not give the same answer twice from layer 2 on \(dropout\?"):
        Prefixes(vlm, batches, 2, tmp_path)


def test_layers_that_share_keys_across_the_start_are_refused(tmp_path: Path) -> None:
    vlm, batches = made("gemma4", 1)
    with pytest.raises(ValueError, match="layers below 2 hand keys and values to those above"):
        Prefixes(vlm, batches, 2, tmp_path)


def test_logits_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    with torch.no_grad():
        vlm.layers[3].mlp.up_proj.weight.fill_(torch.inf)
    with pytest.raises(ValueError, match="NaN or infinity in layer 3"):
        Prefixes(vlm, batches, 2, tmp_path)


def test_no_batches_and_unlike_batches_are_refused(tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    with pytest.raises(ValueError, match="no batches to record"):
        Prefixes(vlm, [], 2, tmp_path)
    text = {name: batches[0][name].clone() for name in ("input_ids", "attention_mask")}
    text["input_ids"][text["input_ids"] == 63] = 7
    stored = Prefixes(vlm, [batches[0], text], 2, tmp_path)
    with pytest.raises(ValueError, match="what runs before the layers differs from batch to batch"):
        stored.run(1)


def test_batches_may_differ_in_length(tmp_path: Path) -> None:
    vlm, batches = made(n=2)
    batches[1] = {name: v[:, :-3] if v.ndim == 2 else v for name, v in batches[1].items()}
    for _ in range(2):
        check(vlm, Prefixes(vlm, batches, 2, tmp_path), batches)


def test_adapters_above_train_from_the_record(tmp_path: Path) -> None:
    vlm, batches = made(n=2)
    stored = Prefixes(vlm, batches, 2, tmp_path)
    vlm.model.requires_grad_(False)
    with adapted(vlm, (2, 3), rank=2) as new:
        for b in new[1::2]:
            nn.init.normal_(b, generator=torch.Generator().manual_seed(5))
        for i in (0, 1, 0, 1):
            plain = vlm.model(**batches[i], use_cache=False).logits
            replayed = vlm.replay(stored.run(i), start=2).logits
            assert same(gradients(plain, new), gradients(replayed, new))


def test_half_precision_is_kept_as_it_is(tmp_path: Path) -> None:
    vlm, batches = made(n=1)
    vlm.model.to(torch.bfloat16)
    batches = [{n: v.bfloat16() if v.is_floating_point() else v for n, v in one.items()} for one in batches]
    stored = Prefixes(vlm, batches, 2, tmp_path)
    for _ in range(2):
        check(vlm, stored, batches)
    with safe_open(files(stored)[0], "pt") as file:
        about = json.loads(file.metadata()["about"])
        assert {file.get_tensor(n).dtype for n in file.keys()} >= {torch.bfloat16}  # noqa: SIM118
    assert about[0] == list(vlm.record(stop=2, **batches[0]).resid[2].shape)
