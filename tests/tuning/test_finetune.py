import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from tiny_models import build, tiny_processor
from torch import Tensor

from vlalign_utils import VLM
from vlalign_utils.data.items import Item
from vlalign_utils.inference.scoring import Batch, batches, evaluate
from vlalign_utils.paths import ROOT
from vlalign_utils.tuning import answer_loss, finetune, train_loop
from vlalign_utils.tuning.batch_order import step_batches
from vlalign_utils.tuning.finetune import Budget, Training, tune
from vlalign_utils.tuning.optimisers import OPTIMISERS
from vlalign_utils.tuning.strategies import Strategy, strategies
from vlalign_utils.tuning.trainable import checkpointed
from vlalign_utils.tuning.training_state import load_state

ITEMS = [
    Item(Image.new("RGB", (16, 16), colour), "what colour ?", colour, ("red", "green", "blue"), "g", "")
    for colour in ("red", "green", "blue") * 4
]
BAND = Strategy("band", (1, 2))
LORA = BAND.adapters(2)
FEW = Budget(steps=4, lr=1e-2)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Accelerate keeps one state for a process: another test's precision must not become this one's."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def vlm() -> VLM:
    return tiny()


def tiny() -> VLM:
    made = VLM(build("llava")[0].model, tiny_processor())
    with torch.no_grad():
        made.model(**data(made)[0].inputs)  # transformers installs hooks of its own at the first forward
    return made


def half() -> VLM:
    vlm = tiny()
    vlm.model.to(torch.bfloat16)
    return vlm


def data(vlm: VLM, size: int = 4) -> list[Batch]:
    return list(batches(vlm, ITEMS, batch_size=size))


def weights(vlm: VLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in vlm.model.named_parameters()}


def everything(vlm: VLM) -> dict[str, Any]:
    """Whatever a fine-tune could leave behind, by identity where it has one."""
    modules = dict(vlm.model.named_modules())
    return {
        "modules": {name: id(module) for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
        "checkpointing": {n: getattr(m, "gradient_checkpointing", None) for n, m in modules.items()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in modules.items()},
        "parameters": {n: (id(p), p.data_ptr(), p.dtype) for n, p in vlm.model.named_parameters()},
        "requires_grad": {n: p.requires_grad for n, p in vlm.model.named_parameters()},
        "gradients": {n: id(p.grad) for n, p in vlm.model.named_parameters()},
    }


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and not changed(one, other)


@contextmanager
def comes_back(vlm: VLM) -> Iterator[dict[str, Tensor]]:
    bits, rest = weights(vlm), everything(vlm)
    yield bits
    assert same(bits, weights(vlm))
    assert everything(vlm) == rest


def tuned(
    vlm: VLM, strategy: Strategy = BAND, budget: Budget = FEW, **options: Any
) -> tuple[Training, dict[str, Tensor]]:
    """What a fine-tune gave; and the weights it had then."""
    given = options.pop("batches", None) or data(vlm)
    with tune(vlm, strategy, given, budget, **options) as training:
        return training, weights(vlm)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["full", "band", "late", "connector", "uniform", "lora"])
def test_only_what_the_strategy_names_moves_and_everything_comes_back(
    vlm: VLM, name: str, checkpointing: bool
) -> None:
    strategy = LORA if name == "lora" else strategies(vlm.n_layers, (1, 3))[name]
    expected = {
        n
        for n, p in vlm.model.named_parameters()
        if any(p is own for own in finetune.trained(vlm, strategy)) and not n.endswith("k_proj.bias")
    }
    first = next(vlm.model.parameters())
    first.requires_grad_(False)
    vlm.layers[1].mlp.up_proj.weight.grad = torch.ones_like(vlm.layers[1].mlp.up_proj.weight)
    vlm.model.model.vision_tower.train()
    with comes_back(vlm) as before:
        training, after = tuned(vlm, strategy, Budget(steps=3, lr=1e-2, checkpointing=checkpointing))
    if name == "lora":
        new = {n for n in after if "lora_" in n}
        assert {n.split(".lora_")[0] for n in new} == {
            n.removesuffix(".weight") for n in before if ".layers.1." in n or ".layers.2." in n
            if "language_model" in n and "proj" in n
        }  # fmt: skip
        after = {n.replace(".base_layer", ""): w for n, w in after.items() if n not in new}
        assert training.parameters < 0.5 * sum(before[n].numel() for n in before)
    else:
        assert training.parameters == sum(p.numel() for p in finetune.trained(vlm, strategy))
    assert changed(before, after) == expected
    assert training.stopped == ""


@pytest.mark.parametrize("strategy", [BAND, LORA])
def test_everything_comes_back_after_errors(vlm: VLM, strategy: Strategy, tmp_path: Path) -> None:
    budget = Budget(steps=3, lr=1e-2, checkpointing=True)
    with comes_back(vlm), pytest.raises(KeyError), tune(vlm, strategy, data(vlm), budget):
        raise KeyError
    with comes_back(vlm), pytest.raises(KeyboardInterrupt):
        tuned(vlm, strategy, budget, batches=Cut(data(vlm), 2))
    with comes_back(vlm), pytest.raises(KeyboardInterrupt):
        tuned(vlm, strategy, budget, batches=Cut(data(vlm), 5), record_to=tmp_path)


class Cut(list):
    """Batches of a run that is killed when it asks for one too often."""

    def __init__(self, whole: list[Batch], left: int) -> None:
        super().__init__(whole)
        self.left = left

    def __getitem__(self, i: Any) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__getitem__(i)


@pytest.mark.slow_except("0-layers1-True")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", [(0,), (1, 2), (1, 3)])
@pytest.mark.parametrize("rank", [0, 2])
def test_recorded_and_ordinary_training_are_the_same(
    vlm: VLM, layers: tuple[int, ...], rank: int, checkpointing: bool, tmp_path: Path
) -> None:
    strategy = Strategy("s", layers, rank=rank)
    budget = Budget(steps=7, lr=1e-2, accumulate=2, checkpointing=checkpointing)
    ordinary, expected = tuned(vlm, strategy, budget)
    recorded, found = tuned(vlm, strategy, budget, record_to=tmp_path)
    assert same(expected, found)
    assert recorded.loss == ordinary.loss
    assert len(ordinary.loss) == 7
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    _, found = tuned(vlm, strategy, budget, record_to=tmp_path / "bounded", limit=0)
    assert same(expected, found)


@pytest.mark.slow
def test_recorded_training_runs_the_tower_once_a_batch(vlm: VLM, tmp_path: Path) -> None:
    calls: list[int] = []
    tower = vlm.model.model.vision_tower
    own = tower.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return own(*args, **kwargs)

    tower.forward = counted
    budget = Budget(steps=12, lr=1e-3)
    tuned(vlm, BAND, budget, record_to=tmp_path)
    first = len(calls)
    assert first == 3
    tuned(vlm, BAND, budget, record_to=tmp_path)
    assert len(calls) == first + 1  # the first batch, to find out what has to be kept
    tuned(vlm, BAND, budget)
    assert len(calls) == first + 1 + 12 + 1  # and one to see what is held in memory


def gradients(vlm: VLM, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Tensor]:
    """Of the first step, by an optimiser that only looks."""
    seen: dict[str, Tensor] = {}

    class Look(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            names = {id(p): n for n, p in vlm.model.named_parameters()}
            own = [p for group in self.param_groups for p in group["params"]]
            seen.update({names[id(p)]: p.grad.clone() for p in own if p.grad is not None})

    monkeypatch.setitem(OPTIMISERS, "adamw", lambda trained, schedule: [Look(trained.values(), 0.1)])
    monkeypatch.setattr(train_loop.Schedule.model_fields["clip"], "default", 1e9)
    tuned(vlm, **options)
    assert seen
    return seen


def test_checkpointing_gives_the_same_gradients(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain, less = (Budget(steps=1, lr=1e-3, checkpointing=on) for on in (False, True))
    expected = gradients(vlm, monkeypatch, budget=plain)
    assert same(expected, gradients(vlm, monkeypatch, budget=less))
    assert same(expected, gradients(vlm, monkeypatch, budget=less, record_to=tmp_path))


def test_checkpointing_leaves_the_dropout_of_a_layer_as_it_is(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in vlm.layers:  # as BART has it: by the layer's own flag, not by a module's
        layer.mlp.register_forward_hook(
            lambda _, args, out, layer=layer: torch.nn.functional.dropout(out, 0.5, layer.training)
        )
    plain, less = (Budget(steps=1, lr=1e-3, checkpointing=on) for on in (False, True))
    expected = gradients(vlm, monkeypatch, budget=plain)
    assert same(expected, gradients(vlm, monkeypatch, budget=less))


def test_layers_that_share_keys_can_be_checkpointed() -> None:
    vlm, inputs = build("gemma4")
    vlm.model.requires_grad_(False)
    own = list(vlm.layers[1:].parameters())
    for parameter in own:
        parameter.requires_grad_(True)

    def gradients() -> tuple[Tensor | None, ...]:
        logits = vlm.model(**inputs, use_cache=False).logits
        return torch.autograd.grad(logits.square().sum(), own, allow_unused=True)

    expected = gradients()
    with checkpointed(vlm.layers[1:]):
        found = gradients()
    assert any(x is not None for x in expected)
    assert all(x is y or torch.equal(x, y) for x, y in zip(expected, found, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("strategy", [BAND, LORA])
def test_nothing_is_computed_backwards_below_the_band(
    vlm: VLM, strategy: Strategy, recorded: bool, checkpointing: bool, tmp_path: Path
) -> None:
    reached = set()
    for k, layer in enumerate(vlm.layers):
        layer.mlp.act_fn.register_full_backward_hook(lambda *_, k=k: reached.add(k))
    embedded: list[bool] = []
    vlm.model.get_input_embeddings().register_forward_hook(
        lambda _, args, out: embedded.append(out.requires_grad)
    )
    budget = Budget(steps=2, lr=1e-3, checkpointing=checkpointing)
    tuned(vlm, strategy, budget, record_to=tmp_path if recorded else None)
    assert reached == {1, 2, 3}
    assert embedded
    assert not any(embedded)


def test_gradient_accumulation_is_one_large_batch(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(range(8))
    whole = [tuning_batch(vlm, rows)]
    parts = [tuning_batch(vlm, rows[:3]), tuning_batch(vlm, rows[3:])]
    assert len({int((part.answers >= 0).sum()) for part in parts}) == 2  # tokens count alike, batches do not
    large = gradients(vlm, monkeypatch, budget=Budget(steps=1, lr=1e-3), batches=whole)
    small = gradients(vlm, monkeypatch, budget=Budget(steps=1, lr=1e-3, accumulate=2), batches=parts)
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-4, atol=1e-6)
    monkeypatch.undo()
    one, _ = tuned(vlm, budget=Budget(steps=3, lr=1e-3), batches=whole)
    two, _ = tuned(vlm, budget=Budget(steps=3, lr=1e-3, accumulate=2), batches=parts)
    assert [x for _, x in two.loss] == pytest.approx([x for _, x in one.loss], rel=1e-3)


def tuning_batch(vlm: VLM, rows: list[int]) -> Batch:
    return tuning_batches(vlm, rows)[0]


def tuning_batches(vlm: VLM, rows: list[int]) -> list[Batch]:
    return list(batches(vlm, [ITEMS[row] for row in rows], batch_size=len(rows)))


@pytest.mark.slow_except("True-strategy1")
@pytest.mark.parametrize("strategy", [BAND, LORA])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_killed_run_resumes_to_the_same_weights(
    vlm: VLM, strategy: Strategy, recorded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_loop, "SAVE_EVERY", 3)
    budget = Budget(steps=8, lr=1e-2, accumulate=2)
    whole, expected = tuned(vlm, strategy, budget)
    options = {"checkpoint": tmp_path / "c", "record_to": tmp_path / "prefixes" if recorded else None}
    loss, left = (
        answer_loss.answer_loss,
        iter(range(1 + 2 * 5)),
    )  # one to see what is held, then those of 5 steps

    def killed(logits: Tensor, answers: Tensor) -> Tensor:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return loss(logits, answers)

    monkeypatch.setattr(answer_loss, "answer_loss", killed)
    with comes_back(vlm), pytest.raises(KeyboardInterrupt):
        tuned(vlm, strategy, budget, **options)
    monkeypatch.setattr(answer_loss, "answer_loss", loss)
    state = load_state(tmp_path / "c")
    assert state["history"]["step"] == 3
    resumed, found = tuned(tiny(), strategy, budget, **options)
    assert same(expected, found)
    assert resumed.loss == whole.loss


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(vlm: VLM, tmp_path: Path) -> None:
    tuned(vlm, checkpoint=tmp_path / "c")
    _, expected = tuned(vlm)
    assert same(tuned(vlm, checkpoint=tmp_path / "c")[1], expected)
    others: list[tuple[Strategy, Budget]] = [
        (Strategy("late", (2, 3)), FEW),
        (Strategy("band", (2, 3)), FEW),
        (BAND, Budget(steps=4, lr=2e-2)),
        (BAND, Budget(steps=4, lr=1e-2, seed=1)),
        (BAND, Budget(steps=4, lr=1e-2, precision="bf16")),
        (LORA, FEW),
    ]
    for strategy, budget in others:
        with comes_back(vlm), pytest.raises(ValueError, match="is the checkpoint of another run than"):
            tuned(vlm, strategy, budget, checkpoint=tmp_path / "c")


def test_a_checkpoint_of_another_rank_is_refused(vlm: VLM, tmp_path: Path) -> None:
    tuned(vlm, LORA, checkpoint=tmp_path / "c")
    with comes_back(vlm), pytest.raises(ValueError, match="is the checkpoint of another run than"):
        tuned(vlm, replace(LORA, rank=LORA.rank + 1), checkpoint=tmp_path / "c")


def test_a_checkpoint_of_other_weights_or_data_is_refused(vlm: VLM, tmp_path: Path) -> None:
    tuned(vlm, checkpoint=tmp_path / "c")
    other = tiny()
    with torch.no_grad():
        other.layers[0].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(ValueError, match="is the checkpoint of another run than 'band, seed 0'"):
        tuned(other, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="is the checkpoint of another run than 'band, seed 0'"):
        tuned(vlm, batches=data(vlm)[::-1], checkpoint=tmp_path / "c")


def test_huge_rates_stop_with_the_last_good_weights(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with comes_back(vlm) as before:
        training, after = tuned(vlm, budget=Budget(steps=30, lr=1e30))
    assert "lower the learning rate" in training.stopped
    assert training.stopped.startswith("band, seed 0: ")
    assert same(before, after)
    assert len(training.loss) < 30


def test_weights_that_the_last_step_spoils_are_never_given(vlm: VLM) -> None:
    with comes_back(vlm) as before:
        training, after = tuned(vlm, budget=Budget(steps=1, lr=1e39))
    assert "weights are not finite after step 0" in training.stopped
    assert same(before, after)


@pytest.mark.parametrize("strategy", [BAND, LORA])
def test_an_infinite_weight_stops_at_once(vlm: VLM, strategy: Strategy) -> None:
    with torch.no_grad():
        vlm.layers[3].mlp.up_proj.weight[0, 0] = math.inf
    with comes_back(vlm):
        training, _ = tuned(vlm, strategy, Budget(steps=30, lr=1e-3))
    assert "the loss is nan at step 0" in training.stopped
    assert training.loss == []


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [BAND, LORA, strategies(4, (1, 3))["full"]])
def test_half_precision_trains_in_single_and_comes_back_in_half(
    strategy: Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = half()
    dtypes: list[set[torch.dtype]] = []
    step = torch.optim.AdamW.step

    def watch(self: Any, *args: Any) -> Any:
        dtypes.append({p.dtype for group in self.param_groups for p in group["params"]})
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    with comes_back(vlm) as before, tune(vlm, strategy, data(vlm), FEW) as training:
        after = weights(vlm)
        assert {w.dtype for n, w in after.items() if "lora" not in n} == {torch.bfloat16}
        assert len(evaluate(vlm, ITEMS[:3]).correct) == 3  # the body can use the model as it is
    assert dtypes == [{torch.float32}] * 4
    if not strategy.rank:
        assert changed(before, after)
    if strategy.start is not None:
        recorded, found = tuned(vlm, strategy, record_to=tmp_path)
        assert same(after, found)
        assert recorded.loss == training.loss


@pytest.mark.slow
def test_one_precision_may_follow_another(vlm: VLM) -> None:
    _, first = tuned(vlm)
    tuned(half())
    mixed, _ = tuned(vlm, budget=Budget(steps=4, lr=1e-2, precision="bf16"))
    assert len(mixed.loss) == 4
    assert same(first, tuned(vlm)[1])


def test_impossible_precisions_are_refused(vlm: VLM) -> None:
    with comes_back(vlm), pytest.raises(ValueError, match="'fp16' needs a cuda device"):
        tuned(vlm, budget=Budget(steps=1, lr=1e-3, precision="fp16"))
    low = half()
    with pytest.raises(ValueError, match="the model's weights are bf16, precision is 'no': pass 'bf16'"):
        tuned(low, budget=Budget(steps=1, lr=1e-3, precision="no"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0, expected at least 1"),
        ({"accumulate": 0}, "accumulate is 0, expected at least 1"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"lr": math.inf}, "lr is inf"),
        ({"lr": math.nan}, "lr is nan"),
        ({"optimiser": "sgd"}, "optimiser is 'sgd', expected one of adamw, adamw8bit"),
        ({"precision": "int8"}, "precision is 'int8', expected one of auto, no, bf16, fp16"),
    ],
)
def test_impossible_budgets_are_refused(options: dict[str, Any], message: str, checks_off: None) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**{"steps": 1, "lr": 1e-3} | options)


def test_eight_bits_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'adamw8bit' needs the package bitsandbytes: install it"):
        Budget(steps=1, lr=1e-3, optimiser="adamw8bit")
    monkeypatch.setattr(finetune, "find_spec", lambda name: object())
    assert Budget(steps=1, lr=1e-3, optimiser="adamw8bit").optimiser == "adamw8bit"


def test_batches_may_change_with_the_epoch(vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    vlm.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"].mean()), with_kwargs=True
    )
    asked: list[int] = []

    def brighter(epoch: int) -> list[Batch]:
        asked.append(epoch)
        return [
            Batch(b.rows, b.inputs | {"pixel_values": epoch * torch.ones(4, 3, 16, 16)}, b.answers)
            for b in data(vlm)
        ]  # fmt: skip

    training, _ = tuned(vlm, budget=Budget(steps=7, lr=1e-3), batches=brighter)
    assert [float(x) for x in seen] == [0, 0, 0, 0, 1, 1, 1, 2]  # the first to see what is held in memory
    assert sorted(set(asked)) == [0, 1, 2]
    assert len(training.loss) == 7
    with comes_back(vlm), pytest.raises(ValueError, match="batches change from epoch to epoch"):
        tuned(vlm, batches=brighter, record_to=tmp_path)


@pytest.mark.parametrize("name", ["full", "connector"])
def test_nothing_is_recorded_for_what_trains_the_connector(vlm: VLM, name: str, tmp_path: Path) -> None:
    strategy = strategies(vlm.n_layers, (1, 3))[name]
    with pytest.raises(ValueError, match=f"'{name}' trains weights below layer 0"):
        tuned(vlm, strategy, record_to=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_trained_is_refused_before_anything_is_recorded(vlm: VLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trains layer 7, the model has 4 layers"):
        tuned(vlm, Strategy("band", (7,)), record_to=tmp_path)
    with pytest.raises(ValueError, match="there are no batches to train on"), tune(vlm, BAND, [], FEW):
        pass
    for layer in vlm.layers[1:3]:
        layer.mlp.up_proj.weight = torch.nn.Parameter(layer.mlp.up_proj.weight.to("meta"))
    with pytest.raises(ValueError, match="offloaded or quantised"):
        tuned(vlm)


@pytest.mark.slow
def test_strategies_see_the_same_batches_in_the_same_order(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[bytes]] = []
    loss = answer_loss.answer_loss

    def watch(logits: Tensor, answers: Tensor) -> Tensor:
        seen[-1].append(answers.numpy().tobytes())
        return loss(logits, answers)

    monkeypatch.setattr(answer_loss, "answer_loss", watch)
    examples = data(vlm, 2)
    for name, strategy in {**strategies(vlm.n_layers, (1, 3)), "lora": LORA}.items():
        for folder in (None, tmp_path / name):
            if folder and strategy.start is None:
                continue
            seen.append([])
            tuned(vlm, strategy, Budget(steps=7, lr=1e-3, seed=2), batches=examples, record_to=folder)
    assert len(seen[0]) == 8  # the first to see what is held in memory
    assert all(order == seen[0] for order in seen)
    seen.append([])
    tuned(vlm, BAND, Budget(steps=7, lr=1e-3, seed=3), batches=examples)
    assert seen[-1] != seen[0]


def test_every_batch_is_seen_once_an_epoch_and_once_among_the_processes(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = data(vlm, 2)

    def share(processes: int, index: int, first: int = 0) -> list[list[int]]:
        monkeypatch.setattr(Accelerator, "num_processes", processes)
        monkeypatch.setattr(Accelerator, "process_index", index)
        steps = step_batches(lambda _: examples, 0, 9, 2, Accelerator(cpu=True), first)
        return [[i for i, _, _ in step] for step in steps]

    whole = share(1, 0)
    turns = [i for step in whole for i in step]
    assert [sorted(turns[k : k + 6]) for k in (0, 6, 12)] == [list(range(6))] * 3
    assert share(1, 0, first=4) == whole[4:]
    assert [[*a, *b] for a, b in zip(share(2, 0), share(2, 1), strict=True)] == whole


@pytest.mark.slow
def test_loss_falls_and_is_repeatable(vlm: VLM) -> None:
    budget = Budget(steps=25, lr=1e-2, seed=1)
    (first, one), (second, other) = tuned(vlm, budget=budget), tuned(vlm, budget=budget)
    assert first.loss == second.loss
    assert same(one, other)
    assert first.loss[-1][1] < 0.5 * first.loss[0][1]


@pytest.mark.slow
def test_less_is_kept_in_memory_when_less_is_trained(vlm: VLM) -> None:
    found = {
        name: tuned(vlm, strategy, Budget(steps=1, lr=1e-3))[0]
        for name, strategy in strategies(vlm.n_layers, (1, 3)).items()
    }
    memory = {name: training.memory for name, training in found.items()}
    assert memory["late"] < memory["band"] < memory["early"] < memory["full"]
    same_width = {found[name].parameters for name in ("late", "band", "early", "uniform")}
    assert len(same_width) == 1
    less, _ = tuned(vlm, BAND, Budget(steps=1, lr=1e-3, checkpointing=True))
    lora, _ = tuned(vlm, LORA, Budget(steps=1, lr=1e-3))
    assert less.memory < memory["band"]
    assert lora.parameters < found["band"].parameters


def test_loss_is_the_mean_over_answer_tokens(vlm: VLM) -> None:
    (batch, *_) = data(vlm)
    log_prob = vlm.model(**batch.inputs).logits.log_softmax(-1)
    rows, columns = (batch.answers >= 0).nonzero(as_tuple=True)
    expected = -log_prob[rows, columns - 1, batch.answers[rows, columns]].mean()
    inputs = answer_loss.inputs_of(vlm, batch)
    assert inputs["logits_to_keep"] == int((batch.answers >= 0).sum(1).max()) + 1
    for given in (batch.inputs, inputs):
        found = answer_loss.answer_loss(vlm.model(**given).logits, batch.answers)
        torch.testing.assert_close(found, expected)


def test_answers_in_the_middle_count_too(vlm: VLM) -> None:
    (batch, *_) = data(vlm)
    moved = batch.answers.roll(-2, dims=1)
    whole = answer_loss.answer_loss(vlm.model(**batch.inputs).logits, moved)
    few = answer_loss.inputs_of(vlm, Batch(batch.rows, batch.inputs, moved))
    torch.testing.assert_close(answer_loss.answer_loss(vlm.model(**few).logits, moved), whole)


SHARED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import torch
from test_finetune import BAND, data, tiny, tune, weights
from vlalign_utils import Budget

vlm = tiny()
budget = Budget(steps=6, lr=1e-3, accumulate=2)
for name, record_to in (("plain", None), ("recorded", Path({path!r}) / "prefixes")):
    with tune(vlm, BAND, data(vlm), budget, record_to=record_to) as training:
        assert training.stopped == ""
        rank = torch.distributed.get_rank()
        torch.save((training.loss, weights(vlm)), Path({path!r}) / (name + str(rank)))
with tune(vlm, BAND, data(vlm), Budget(steps=6, lr=1e30, accumulate=2)) as training:
    assert "lower the learning rate" in training.stopped
    torch.save(weights(vlm), Path({path!r}) / ("stopped" + str(rank)))
try:
    with tune(vlm, BAND, data(vlm), Budget(steps=6, lr=1e-3)):
        pass
except ValueError as error:
    assert "must be a multiple of their number" in str(error)
else:
    raise AssertionError
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_that_share_the_batches_train_as_one_does(vlm: VLM, tmp_path: Path) -> None:
    whole, expected = tuned(vlm, BAND, Budget(steps=6, lr=1e-3, accumulate=2))
    script = tmp_path / "shared.py"
    script.write_text(
        SHARED.format(path=str(tmp_path), paths=[str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("plain", "recorded"):
        (loss, one), (_, other) = (torch.load(tmp_path / f"{name}{rank}") for rank in (0, 1))
        assert same(one, other)
        assert [x for _, x in loss] == pytest.approx([x for _, x in whole.loss], rel=1e-4)
        for key, weight in expected.items():
            torch.testing.assert_close(one[key], weight, rtol=1e-3, atol=1e-4)
    for rank in (0, 1):
        assert same(torch.load(tmp_path / f"stopped{rank}"), weights(vlm))
