import re

import pytest
from tiny_models import build

from vlalign_utils import VLM
from vlalign_utils.driver import connector as module
from vlalign_utils.tuning.strategies import Strategy, strategies, trained


@pytest.fixture
def vlm() -> VLM:
    return build("llava")[0]


def names(vlm: VLM, strategy: Strategy) -> set[str]:
    chosen = trained(vlm, strategy)
    assert len({id(p) for p in chosen}) == len(chosen)
    return {name for name, p in vlm.model.named_parameters() if any(p is q for q in chosen)}


def in_layers(vlm: VLM, layers: tuple[int, ...]) -> set[str]:
    prefixes = tuple(f"{vlm.anatomy.name}.{k}." for k in layers)
    return {name for name, _ in vlm.model.named_parameters() if name.startswith(prefixes)}


def test_a_band_has_its_comparisons() -> None:
    found = strategies(8, (2, 5))
    assert {name: s.layers for name, s in found.items()} == {
        "full": tuple(range(8)),
        "band": (2, 3, 4),
        "band, connector": (2, 3, 4),
        "early": (0, 1, 2),
        "late": (5, 6, 7),
        "complement": (0, 1, 5, 6, 7),
        "uniform": (1, 4, 6),  # the middles of three parts of 8 layers: 1.33, 4, 6.67
        "connector": (),
    }
    assert {name for name, s in found.items() if s.connector} == {"full", "band, connector", "connector"}
    assert {name for name, s in found.items() if s.language} == {"full"}
    assert {name: s.name for name, s in found.items()} == {name: name for name in found}


@pytest.mark.parametrize("n_layers", [2, 5, 12, 31])
def test_compared_strategies_train_equally_many_layers(n_layers: int) -> None:
    for width in range(1, n_layers):
        found = strategies(n_layers, (0, width))
        for name in ("band", "early", "late", "uniform"):
            layers = found[name].layers
            assert len(set(layers)) == width
            assert 0 <= min(layers) <= max(layers) < n_layers
        assert set(found["band"].layers) | set(found["complement"].layers) == set(range(n_layers))


@pytest.mark.parametrize("band", [(3, 3), (-1, 2), (5, 9), (0, 8), (5, 3)])
def test_impossible_bands_are_refused(band: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        strategies(8, band)


def test_what_is_recorded_for_starts_at_the_lowest_trained_layer() -> None:
    found = strategies(8, (2, 5))
    starts = {name: s.start for name, s in found.items()}
    assert starts == {
        "full": None, "band": 2, "band, connector": None, "early": 0, "late": 5, "complement": 0,
        "uniform": 1, "connector": None,
    }  # fmt: skip


def test_adapters_are_the_same_layers_under_another_name() -> None:
    band = Strategy("band", (1, 2))
    assert band.adapters(4) == Strategy("band, LoRA", (1, 2), rank=4)
    assert band.adapters(4, "MLP") == Strategy("band, LoRA, MLP", (1, 2), rank=4, part="MLP")
    with pytest.raises(ValueError, match="rank 4 needs layers, and frozen ones"):
        strategies(4, (1, 3))["full"].adapters(4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (2, 1)}, r"layers are \[2, 1\], expected ascending numbers"),
        ({"layers": (1, 1)}, "expected ascending numbers"),
        ({"layers": (-1, 1)}, "expected ascending numbers"),
        ({"layers": (1,), "rank": -1}, "rank -1 needs layers"),
        ({"connector": True, "rank": 2}, "rank 2 needs layers"),
        ({"layers": (1,), "part": "MLP"}, "part 'MLP' needs a rank, and to be one of attention, MLP"),
        ({"layers": (1,), "rank": 2, "part": "both"}, "part 'both' needs a rank, and to be one of"),
        ({}, "strategy 's' trains nothing"),
    ],
)
def test_impossible_strategies_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Strategy("s", **fields)


def test_full_trains_all_but_the_vision_tower(vlm: VLM) -> None:
    everything = {name for name, _ in vlm.model.named_parameters()}
    vision = {name for name in everything if "vision_tower" in name}
    assert vision
    assert names(vlm, strategies(vlm.n_layers, (1, 3))["full"]) == everything - vision


def test_a_band_trains_its_layers_and_the_connector_itself(vlm: VLM) -> None:
    assert names(vlm, Strategy("band", (1, 2))) == in_layers(vlm, (1, 2))
    connector = names(vlm, Strategy("connector", connector=True))
    assert connector == {n for n, _ in vlm.model.named_parameters() if "multi_modal_projector" in n}
    assert names(vlm, Strategy("both", (3,), connector=True)) == connector | in_layers(vlm, (3,))


def test_adapters_train_none_of_the_models_own_weights(vlm: VLM) -> None:
    assert trained(vlm, Strategy("band", (1, 2)).adapters(2)) == []


def test_layers_that_are_not_there_are_refused(vlm: VLM) -> None:
    for rank in (0, 2):
        with pytest.raises(ValueError, match="'band' trains layer 4, the model has 4 layers"):
            trained(vlm, Strategy("band", (3, 4), rank=rank))


def test_a_model_without_a_connector_is_refused(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECTOR", re.compile("no such module"))
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration has no module that is named like"):
        trained(vlm, Strategy("full", connector=True))
