import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from vlalign_utils.data.things.splits import held_out_things, trained_things
from vlalign_utils.zoo import tower_scores as scores


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, in order; an image's pixels tell its thing."""
    shown = []

    def draw(rng, split, count, *, among, styles):
        assert (split, count, len(among), len(styles)) == ("test", 1, 1, 1)
        shown.append((among[0], styles[0]))
        return among[0]

    def render(thing, side):
        number = [*trained_things(), *held_out_things()].index(thing)
        return np.full((side, side, 3), (number // 256, number % 256, 0), dtype=np.uint8)

    monkeypatch.setattr(scores, "draw_scene", draw)
    monkeypatch.setattr(scores, "render", render)
    return shown


def numbers(images: list[Image.Image]) -> list[int]:
    return [int(p[0]) * 256 + int(p[1]) for p in (np.asarray(image)[0, 0] for image in images)]


def test_a_tower_that_tells_all_things_apart_names_all(drawn):
    def embed(images):
        return torch.eye(len(trained_things()) + len(held_out_things()))[numbers(images)]

    found = scores.tower_scores(embed, 2, queries=2, things=7)
    held_out = len(held_out_things())
    assert found["name, trained things"] == {"value": 1, "low": 1, "high": 1, "chance": 0.1429, "n": 7}
    assert found["name, held-out things"]["value"] == 1
    assert found["name, held-out things"]["n"] == 2 * held_out
    assert [style for _, style in drawn].count("twitter") == 7 + 2 * held_out
    # Unlike all trained things, a held-out one is nearest to the first of them.
    kinds = [thing.kind for thing in held_out_things()]
    share = np.mean([kind == trained_things()[0].kind for kind in kinds])
    assert found["kind, held-out things"]["value"] == pytest.approx(share, abs=1e-4)


def test_a_tower_that_sees_nothing_names_one_thing(drawn):
    found = scores.tower_scores(lambda images: torch.ones(len(images), 3), 2, queries=1, things=5)
    assert found["name, trained things"]["value"] == pytest.approx(1 / 5)
    assert found["name, held-out things"]["value"] == pytest.approx(1 / len(held_out_things()), abs=1e-4)


def test_the_nearest_row_is_that_of_scikit_learn():
    queries, bank = torch.randn(20, 6), torch.randn(30, 6)
    oracle = NearestNeighbors(n_neighbors=1, metric="cosine").fit(bank.numpy())
    expected = oracle.kneighbors(queries.numpy(), return_distance=False)[:, 0]
    np.testing.assert_array_equal(scores.nearest_rows(queries, bank), expected)


@pytest.mark.slow
def test_a_real_tower_s_features_are_averaged_over_positions():
    from vlalign_utils import VLM
    from vlalign_utils.zoo.from_parts import build_processor, fresh_model

    vlm = VLM(fresh_model(0), build_processor())
    image = Image.effect_noise((90, 60), 50).convert("RGB")
    (found,) = scores.tower_embedding(vlm)([image])
    pixels = vlm.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = vlm.model.base_model.vision_tower.timm_model.forward_features(pixels)[0].flatten(1).mean(1)
    torch.testing.assert_close(found, expected)
