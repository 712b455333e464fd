"""Rows of half-precision states written to disk: ActivationStore against a row at a time, interleaved.

SQLite with its default settings waits for the disk at each commit. What was appended to the store is safe
against a kill of the process; a batch that a crash of the machine damages is found and captured again. Each
of its ways is timed without and with a wait for the disk at the end. `torch.save` waits for each file in one
way and never in the other. Each way's rows are read back and compared before any ratio counts.
"""

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Row, ratio, show
from vlalign_utils.inference.store import ActivationStore

LAYERS = 20  # a row is one item at one layer: an append of the store holds all layers of its items
USUAL = "SQLite, a row and a commit each"

Rows = torch.Tensor  # [rows, width] of float16


def sqlite(folder: Path, rows: Rows) -> Callable[[], Rows]:
    """One blob a row, a commit each, default settings."""
    with sqlite3.connect(folder / "states.db") as base:
        base.execute("CREATE TABLE states (row INTEGER PRIMARY KEY, state BLOB)")
    base = sqlite3.connect(folder / "states.db")
    for i, row in enumerate(rows.numpy()):
        base.execute("INSERT INTO states VALUES (?, ?)", (i, row.tobytes()))
        base.commit()

    def read() -> Rows:
        found = base.execute("SELECT state FROM states ORDER BY row").fetchall()
        return torch.stack([torch.from_numpy(np.frombuffer(blob, np.float16).copy()) for (blob,) in found])

    return read


def torch_save(folder: Path, rows: Rows, flushed: bool) -> Callable[[], Rows]:
    """One file a row by `torch.save`; `flushed` waits for the disk at each."""
    for i, row in enumerate(rows):
        with (folder / f"{i}.pt").open("wb") as file:
            torch.save(row.clone(), file)
            if flushed:
                file.flush()
                os.fsync(file.fileno())
    return lambda: torch.stack([torch.load(folder / f"{i}.pt") for i in range(len(rows))])


def store(folder: Path, rows: Rows, appends: int, flushed: bool) -> Callable[[], Rows]:
    """All layers of a batch of items an append, with checksums; `flushed` waits for the disk at the end."""
    states = rows.view(LAYERS, -1, rows.shape[-1])
    items = states.shape[1]
    kept = ActivationStore(folder, {"items": items})
    for batch in torch.arange(items).tensor_split(appends):
        first, last = batch[0].item(), batch[-1].item()
        kept.append(batch.tolist(), {"text": states[:, first : last + 1]})
    if flushed:
        os.sync()
    return lambda: kept.states()["text"].flatten(end_dim=1)


WAYS: dict[str, Callable[[Path, Rows], Callable[[], Rows]]] = {
    USUAL: sqlite,
    "torch.save, a file a row, flushed": lambda folder, rows: torch_save(folder, rows, True),
    "torch.save, a file a row, not flushed": lambda folder, rows: torch_save(folder, rows, False),
    **{
        f"ActivationStore, {appends} appends{', then on the disk' * flushed}": partial(
            store, appends=appends, flushed=flushed
        )
        for appends in (4, 20)
        for flushed in (False, True)
    },
}


def rows(rounds: int, count: int = 2000, width: int = 4096, place: Path | None = None) -> list[Row]:
    """Speed-up over SQLite of each way that writes `count` rows of `width` float16 numbers.

    `place` is a folder on the disk to measure; the default is beside this file. Raises ValueError unless the
    rows can be dealt out to the layers, and AssertionError when a way gives back other rows.
    """
    if count % LAYERS:
        raise ValueError(f"count is {count}, expected a multiple of {LAYERS}, the layers of an item")
    data = torch.randn(count, width, generator=torch.Generator().manual_seed(0)).half()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds):
        for name, write in WAYS.items():
            folder = Path(tempfile.mkdtemp(dir=place or Path(__file__).parent, prefix=".storage-"))
            try:
                os.sync()  # what earlier ways left behind is not this one's to wait for
                start = time.perf_counter()
                read = write(folder, data)
                seconds[name].append(time.perf_counter() - start)
                if turn == 0 and not torch.equal(read(), data):
                    raise AssertionError(f"{name} does not give back what it was given")
            finally:
                shutil.rmtree(folder)
    found = [ratio(f"write {count} rows of {width} float16", n, USUAL, seconds) for n in list(WAYS)[1:]]
    show(found)
    return found
