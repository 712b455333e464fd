"""`make bench [SIZE=small] [ONLY=part]`: every comparison, written to `benchmarks/results/<machine>.json`."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import transformers
import typer

from benchmarks import capture, choices, geometry, memory, reuse, screening, storage, sweeps, tuning
from benchmarks.plans import plans
from benchmarks.sizes import SIZES, Size, check_device
from vlalign_utils.paths import write_atomic
from vlalign_utils.tuning.timing import machine

RESULTS = Path(__file__).parent / "results"


def parts(size: Size) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Parts that can be measured, by name: their place in the record, and the function that measures."""
    width = 64 if size is SIZES["tiny"] else 4096
    return {
        "memory": ("memory", partial(memory.rows, size)),
        "memory of tuning": ("memory", partial(tuning.memory_rows, size)),
        "reuse": ("rows", partial(reuse.rows, size)),
        "capture": ("rows", partial(capture.rows, size)),
        "sweeps": ("rows", partial(sweeps.rows, size)),
        "choices": ("rows", partial(choices.rows, size)),
        "screening": ("rows", partial(screening.rows, size)),
        "geometry": ("rows", partial(geometry.rows, size)),
        **{f"tuning {name}": ("rows", partial(tuning.rows, size, name)) for name in tuning.names(size)},
        "storage": ("rows", partial(storage.rows, size.rounds, width=width)),
        "plans": ("plans", plans),
    }


def run(
    size: Annotated[str, typer.Option(help=f"one of {', '.join(SIZES)}")] = "small",
    only: Annotated[str, typer.Option(help=f"some of {', '.join(parts(SIZES['tiny']))}, by commas")] = "",
    out: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure everything at one size, or some of it, and write it after every part.

    What else was measured on this machine stays; of this size, only what the same versions have measured.
    """
    if size not in SIZES:
        _refuse(f"there is no size {size!r}; there are {', '.join(SIZES)}")
    chosen = SIZES[size]
    known = parts(chosen)
    asked = only.split(",") if only else list(known)
    for part in asked:
        if part not in known:
            _refuse(f"there is no part {part!r}; there are {', '.join(known)}")
    try:
        check_device(chosen)
    except ValueError as error:
        _refuse(str(error))
    torch.set_num_threads(1)
    name = machine(chosen.device)
    path = out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    about = {
        "device": name + ("" if chosen.device == "cuda" else ", one thread"),
        "model": (
            f"LLaVA, {chosen.decoder['num_hidden_layers']} layers of width {chosen.decoder['hidden_size']}, "
            f"{chosen.image_tokens} image and {chosen.text_tokens} text tokens, random weights, "
            f"{str(chosen.dtype).removeprefix('torch.')}"
        ),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    before = record.setdefault("sizes", {}).get(size, {})
    same = all(before.get(key) == value for key, value in about.items())
    kept = before if same else {"rows": [], "memory": []}
    record["sizes"][size] = {**about, "rows": kept["rows"], "memory": kept["memory"]}
    for part in asked:
        kind, make = known[part]
        new = make()
        if kind == "plans":  # computed, the same for every size
            record["plans"] = new
        else:
            named = {(row.get("task"), row["way"]) for row in new}
            rows = record["sizes"][size][kind]
            others = [row for row in rows if (row.get("task"), row["way"]) not in named]
            record["sizes"][size][kind] = [*others, *new]
        write_atomic(path, json.dumps(record, indent=1) + "\n")
    typer.echo(f"written to {path}")


def _refuse(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(run)
