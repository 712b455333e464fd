import gc
import logging
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlalign_utils.inference.batching import backing_off, length_sorted, out_of_memory

OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Big:
    """Something that a failed attempt must not keep alive."""


class Device:
    """Fits `room` items at once; notes what it was asked for."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, []

    def __call__(self, rows: list[int]) -> int:
        self.asked.append(len(rows))
        if len(rows) > self.room:
            raise OUT
        return sum(rows)


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans())), st.integers(1, 9))
def test_every_item_is_in_one_batch_of_its_kind(items: list[tuple[int, bool]], batch_size: int) -> None:
    lengths, kinds = [n for n, _ in items], [kind for _, kind in items]
    batches = length_sorted(lengths, batch_size, kinds)
    assert sorted(row for rows in batches for row in rows) == list(range(len(items)))
    assert all(1 <= len(rows) <= batch_size and len({kinds[row] for row in rows}) == 1 for rows in batches)
    for kind in (False, True):
        ordered = [lengths[row] for rows in batches for row in rows if kinds[row] == kind]
        assert ordered == sorted(ordered, reverse=True)


def test_equal_lengths_keep_their_order() -> None:
    assert length_sorted([3, 3, 5, 3], 2) == [[2, 0], [1, 3]]
    assert length_sorted([3, 3, 5, 1], 2, longest_first=False) == [[3, 0], [1, 2]]


def test_lengths_of_several_numbers_go_by_the_first() -> None:
    assert length_sorted([(1, 9), (2, 1), (2, 5)], 3) == [[2, 1, 0]]


def test_what_makes_no_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        length_sorted([1], 0)
    with pytest.raises(ValueError, match="2 lengths but 1 kinds"):
        length_sorted([1, 2], 1, ["a"])


@pytest.mark.slow
def test_batches_halve_until_they_fit_and_stay_small(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(room=2)
    with caplog.at_level(logging.WARNING):
        done = list(backing_off([list(range(8)), [8, 9, 10], [11]], device))
    assert device.asked == [8, 4, 2, 2, 2, 2, 2, 1, 1]
    assert [row for rows, _ in done for row in rows] == list(range(12))
    assert all(value == sum(rows) for rows, value in done)
    assert [r.getMessage() for r in caplog.records] == [
        "a batch of 8 does not fit in memory: trying smaller ones"
    ]


@pytest.mark.slow
def test_an_item_too_large_alone_is_named() -> None:
    with pytest.raises(MemoryError, match=r"item 7 does not fit in memory even alone \(CUDA out of memory"):
        list(backing_off([[7, 8]], Device(room=0)))


@pytest.mark.slow
def test_a_failed_attempt_leaves_nothing_behind() -> None:
    alive: list[weakref.ref[Big]] = []

    def work(rows: list[int]) -> int:
        gc.disable()
        assert all(ref() is None for ref in alive)
        big = Big()
        alive.append(weakref.ref(big))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 0

    try:
        assert len(list(backing_off([[0, 1]], work))) == 2
    finally:
        gc.enable()


def test_other_errors_pass() -> None:
    def work(rows: list[int]) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        list(backing_off([[0]], work))


@pytest.mark.parametrize(
    "error",
    [
        OUT,
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 400 bytes."),
    ],
    ids=lambda error: str(error)[:30],
)
def test_running_out_of_memory_has_many_texts(error: Exception) -> None:
    assert out_of_memory(error)
    assert not out_of_memory(ValueError(str(error)))


def test_the_real_error_of_this_machine_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert out_of_memory(caught.value)
