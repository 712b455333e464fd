"""Peak memory above what the model takes, of the usual ways and of ours."""

import ctypes
import gc
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import naive
from benchmarks.sizes import TEXT_BEFORE, Size, build
from vlalign_utils import FreezeTokens
from vlalign_utils.inference.states import capture

MIB = 2**20
WIDTH = 3


def rows(size: Size) -> list[dict[str, Any]]:
    """One row a way: MiB at the peak, above what is held before it starts."""
    vlm, inputs = build(size)
    image = inputs["input_ids"] == size.decoder["vocab_size"] - 1
    spans = [(first, first + WIDTH - 1) for first in range(vlm.n_layers - WIDTH + 1)]

    def swept() -> None:
        run = vlm.record(kv_cache=True, **inputs)
        for _ in vlm.replays(run, [[FreezeTokens(*span, image)] for span in spans], keep=1):
            pass

    @torch.no_grad()
    def forward() -> None:
        vlm.model(**inputs, use_cache=False)

    ways: dict[str, Callable[[], Any]] = {
        "plain forward": forward,
        "states of every layer: capture, two pooled groups": lambda: capture(vlm, inputs, ("image", "text")),
        "record": lambda: vlm.record(**inputs),
        "record with keys and values": lambda: vlm.record(kv_cache=True, **inputs),
        f"freeze image tokens, windows of {WIDTH}: full forwards": lambda: naive.freeze_sweep(
            vlm, inputs, image, WIDTH
        ),
        f"freeze image tokens, windows of {WIDTH}: replays": swept,
    }
    assert int(image[0].nonzero()[0]) == TEXT_BEFORE
    found = []
    for name, way in ways.items():
        found.append({"way": name, "peak MiB": round(peak(size, way) / MIB, 1)})
        print(f"peak memory: {name} takes {found[-1]['peak MiB']} MiB", flush=True)
    return found


def peak(size: Size, way: Callable[[], Any]) -> int:
    """Bytes at the peak of a way, above what is held before it starts."""
    return _on_gpu(way) if size.device == "cuda" else _in_a_child(way)


def _on_gpu(way: Callable[[], Any]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    return torch.cuda.max_memory_allocated() - before


def _in_a_child(way: Callable[[], Any]) -> int:
    """In a process of its own, so that no way finds memory that another one left free."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_report, args=(way, theirs))
    child.start()
    theirs.close()  # or a child that dies would be waited for without end
    try:
        peak: int = ours.recv()
    except EOFError:
        child.join()
        raise RuntimeError(f"the process that was measured ended with code {child.exitcode}") from None
    child.join()
    return peak


def _report(way: Callable[[], Any], pipe: Any) -> None:
    torch.set_num_threads(1)  # threads of our parent do not come along, and would be waited for without end
    gc.collect()
    # What our parent has freed comes along, and would not be counted; other C libraries keep less of it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before = _resident("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    way()
    # A fork starts without the pages of programs: how many of them come back differs from kernel to kernel.
    pipe.send(_resident("VmHWM") - _resident("RssFile") - before)


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
