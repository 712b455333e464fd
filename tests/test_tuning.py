import re

import pytest
import torch
from PIL import Image
from tiny_models import build, tiny_processor

from vlalign_utils import VLM, tuning
from vlalign_utils.tasks import Batch, Item, batches
from vlalign_utils.tuning import Strategy

ITEMS = [
    Item(Image.new("RGB", (16, 16), colour), "what colour ?", colour, ("red", "green", "blue"), "g", "")
    for colour in ("red", "green", "blue") * 4
]
BAND = Strategy("band", 1, 3)


@pytest.fixture
def vlm() -> VLM:
    return VLM(build("llava")[0].model, tiny_processor())


def data(vlm: VLM) -> list[Batch]:
    return list(batches(vlm, ITEMS, batch_size=4))


def weights(vlm: VLM) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in vlm.model.named_parameters()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_band_moves_and_everything_comes_back(vlm: VLM) -> None:
    before, asked = weights(vlm), [p.requires_grad for p in vlm.model.parameters()]
    with tuning.tune(vlm, BAND, data(vlm), steps=3, lr=1e-2):
        moved = changed(before, weights(vlm))
        inside = {name for name in before if ".layers.1." in name or ".layers.2." in name}
        assert moved == {name for name in inside if "language_model" in name}
    assert not changed(before, weights(vlm))
    assert [p.requires_grad for p in vlm.model.parameters()] == asked
    assert all(p.grad is None for p in vlm.model.parameters())


def test_weights_come_back_after_an_error(vlm: VLM) -> None:
    before = weights(vlm)
    with pytest.raises(KeyError), tuning.tune(vlm, BAND, data(vlm), steps=1, lr=1e-2):
        raise KeyError
    assert not changed(before, weights(vlm))


def test_full_tuning_trains_the_connector_and_never_the_vision_tower(vlm: VLM) -> None:
    before = weights(vlm)
    full = tuning.strategies(vlm.n_layers, (1, 3))[0]
    with tuning.tune(vlm, full, data(vlm), steps=3, lr=1e-2):
        moved = changed(before, weights(vlm))
    assert any("projector" in name for name in moved)
    assert not any("vision_tower" in name or "embed_tokens" in name for name in moved)


def test_nothing_is_computed_backwards_below_the_band(vlm: VLM) -> None:
    reached = set()
    for k, layer in enumerate(vlm.layers):
        layer.mlp.register_full_backward_hook(lambda *_, k=k: reached.add(k))
    with tuning.tune(vlm, BAND, data(vlm), steps=1, lr=1e-3):
        pass
    assert reached == {1, 2, 3}


def test_loss_falls_and_is_repeatable(vlm: VLM) -> None:
    curves = []
    for _ in range(2):
        with tuning.tune(vlm, BAND, data(vlm), steps=25, lr=1e-2, seed=1) as training:
            curves.append(training.loss)
    assert torch.equal(*curves)
    assert curves[0][-1] < 0.5 * curves[0][0]


def test_strategies_see_the_same_batches_in_the_same_order(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    loss = tuning.answer_loss

    def watch(vlm: VLM, batch: Batch) -> torch.Tensor:
        seen[-1].append(batch.rows[0])
        return loss(vlm, batch)

    monkeypatch.setattr(tuning, "answer_loss", watch)
    examples = data(vlm)
    for strategy in tuning.strategies(vlm.n_layers, (1, 3)):
        seen.append([])
        with tuning.tune(vlm, strategy, examples, steps=5, lr=1e-3, seed=2):
            pass
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert set(seen[0]) == {batch.rows[0] for batch in examples}


def test_less_is_kept_in_memory_when_less_is_trained(vlm: VLM) -> None:
    memory, parameters = {}, {}
    for strategy in tuning.strategies(vlm.n_layers, (1, 3)):
        with tuning.tune(vlm, strategy, data(vlm), steps=1, lr=1e-3) as training:
            memory[strategy.name], parameters[strategy.name] = training.memory, training.parameters
    assert memory["late"] < memory["band"] < memory["early"] < memory["full"]
    assert parameters["late"] == parameters["band"] == parameters["early"] < parameters["full"]


def test_loss_is_the_mean_over_answer_tokens(vlm: VLM) -> None:
    (batch, *_) = data(vlm)
    log_prob = vlm.model(**batch.inputs).logits.log_softmax(-1)
    rows, columns = (batch.answers >= 0).nonzero(as_tuple=True)
    expected = -log_prob[rows, columns - 1, batch.answers[rows, columns]].mean()
    assert torch.allclose(tuning.answer_loss(vlm, batch), expected)


def test_strategies_have_equal_width() -> None:
    full, *others = tuning.strategies(8, (2, 5))
    assert (full.first, full.stop, full.connector) == (0, 8, True)
    assert [(s.name, s.first, s.stop) for s in others] == [("band", 2, 5), ("early", 0, 3), ("late", 5, 8)]


@pytest.mark.parametrize("band", [(3, 3), (-1, 2), (5, 9)])
def test_impossible_bands_are_refused(band: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        tuning.strategies(8, band)


def test_a_model_without_a_connector_is_refused(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_CONNECTOR", re.compile("no such module"))
    with pytest.raises(ValueError, match="named like a connector"):
        tuning.trained(vlm, Strategy("full", 0, 4, connector=True))


def test_a_strategy_that_trains_nothing_is_refused(vlm: VLM) -> None:
    with (
        pytest.raises(ValueError, match="'none' trains nothing"),
        tuning.tune(vlm, Strategy("none", 2, 2), data(vlm), steps=1, lr=1e-3),
    ):
        pass
