from functools import partial

import numpy as np
import pytest
import torch
from clouds import HARD, cloud, hard, related, rotation, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign_utils.analysis import prepared_layers
from vlalign_utils.analysis.prepared_layers import prepare
from vlalign_utils.analysis.retrieval import (
    adjusted_cosine_grid,
    adjusted_cosine_paired,
    best_matches,
    recall_paired,
)
from vlalign_utils.evidence.nulls import shuffled


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_layers, "BLOCK", 16)  # blocks that do not divide the items


def test_cosines_and_matches_are_the_naive_loops() -> None:
    x, y = cloud(0, layers=3), cloud(0, layers=2) + cloud(1, layers=2)
    sides = prepare(x, 2), prepare(y, 2)
    cosines, matches = adjusted_cosine_grid(*sides), best_matches(*sides)
    right = matches.right()
    for a in range(3):
        for b in range(2):
            ours, theirs = unit(x[a]), unit(y[b])
            for i in range(40):
                to_y = [float(ours[i] @ theirs[j]) for j in range(40)]
                to_x = [float(theirs[i] @ ours[j]) for j in range(40)]
                others = [value for j, value in enumerate(to_y) if j != i]
                assert cosines[a, b, i].item() == pytest.approx(to_y[i] - sum(others) / 39)
                assert matches.of_x[a, b, i] == to_y.index(max(to_y))
                assert matches.of_y[a, b, i] == to_x.index(max(to_x))
                assert right[0][a, b, i] == (to_y[i] == max(to_y))
                assert right[1][a, b, i] == (to_x[i] == max(to_x))


def test_shuffled_grids_are_the_grids_of_shuffled_items() -> None:
    x, y = related(3, layers=2)
    sides = prepare(x, 2), prepare(y, 2)
    orders = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    cosines, recalls = adjusted_cosine_paired(*sides, orders), recall_paired(best_matches(*sides), orders)
    for cosine, recall, order in zip(cosines, recalls, orders, strict=True):
        moved = prepare(x, 2), prepare(y[:, order], 2)
        assert torch.allclose(cosine, adjusted_cosine_grid(*moved).mean(dim=-1))
        expected = torch.stack([side.double().mean(dim=-1) for side in best_matches(*moved).right()])
        assert torch.allclose(recall, expected)


def test_shuffled_pairs_are_at_chance_and_true_pairs_above_all_of_them() -> None:
    x, y = (prepare(side, 2) for side in related(5, 100))
    matches = best_matches(x, y)
    recall = shuffled(partial(recall_paired, matches), 100, permutations=100)
    cosine = shuffled(partial(adjusted_cosine_paired, x, y), 100, permutations=100)
    assert recall.mean().item() == pytest.approx(1 / 100, rel=0.3)
    assert cosine.mean().item() == pytest.approx(0, abs=0.01)
    assert all(side.double().mean() > recall.max() for side in matches.right())
    assert adjusted_cosine_grid(x, y).mean() > cosine.max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_scale_shift_and_order_change_nothing(seed: int, scale: float, shift: float) -> None:
    x, y = related(seed)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(40))
    here = prepare(x, 2), prepare(y, 2)
    there = prepare(x[:, order], 2), prepare(scale * y[:, order] + shift, 2)
    assert torch.allclose(adjusted_cosine_grid(*here)[..., order], adjusted_cosine_grid(*there))
    for one, other in zip(best_matches(*here).right(), best_matches(*there).right(), strict=True):
        assert torch.equal(one[..., order], other)


def test_one_representation_finds_itself() -> None:
    x = prepare(cloud(0) @ rotation(1), 2)
    assert all(side.all() for side in best_matches(x, x).right())


def test_two_widths_or_numbers_of_items_are_refused() -> None:
    x = prepare(cloud(0), 2)
    for measure in (adjusted_cosine_grid, best_matches):
        with pytest.raises(ValueError, match="states of one width; there are 5 and 4"):
            measure(x, prepare(cloud(1, d=4), 2))
        with pytest.raises(ValueError, match="40 items on one side and 30 on the other"):
            measure(x, prepare(cloud(1, n=30), 2))


@pytest.mark.parametrize("name", HARD)
def test_matches_are_the_largest_cosines_where_rounding_loses_them(name: str) -> None:
    x = hard(name, n=60)
    y = (x.double() + 1e-9 * cloud(3, 60, 96)[0]).to(x.dtype)
    ours, theirs = unit(x.double()), unit(y.double())
    matches = best_matches(prepare(x[None], 2), prepare(y.flip(0)[None], 2))
    assert torch.equal(59 - matches.of_x[0, 0], (ours @ theirs.T).argmax(dim=-1))
    assert torch.equal(matches.of_y[0, 0].flip(0), (theirs @ ours.T).argmax(dim=-1))
