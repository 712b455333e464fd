"""`make bench [SIZE=small]`: every comparison in one run, written to `benchmarks/results/<machine>.json`."""

import json
import platform
import re
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from benchmarks import capture, geometry, memory, reuse, storage, sweeps, tuning
from benchmarks.sizes import SIZES
from vlalign_utils.paths import write_atomic

RESULTS = Path(__file__).parent / "results"


def machine(device: str) -> str:
    """Name of the card, or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else None
    return found[1] if found else platform.processor() or platform.machine()


def run(
    size: Annotated[str, typer.Option(help=f"one of {', '.join(SIZES)}")] = "small",
    out: Annotated[Path, typer.Option(help="folder of the results")] = RESULTS,
) -> None:
    """Measure everything at one size; results of other sizes on this machine stay."""
    if size not in SIZES:
        typer.echo(f"Error: there is no size {size!r}; there are {', '.join(SIZES)}", err=True)
        raise typer.Exit(1)
    chosen = SIZES[size]
    torch.set_num_threads(1)
    try:
        taken = [*memory.rows(chosen), *tuning.memory_rows(chosen)]
    except ValueError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    width = 64 if size == "tiny" else 4096
    timed = [*reuse.rows(chosen), *capture.rows(chosen), *sweeps.rows(chosen), *geometry.rows(chosen)]
    timed += tuning.rows(chosen)
    timed += storage.rows(chosen.rounds, width=width)
    name = machine(chosen.device)
    path = out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    record.setdefault("sizes", {})[size] = {
        "device": name + ("" if chosen.device == "cuda" else ", one thread"),
        "model": (
            f"LLaVA, {chosen.decoder['num_hidden_layers']} layers of width {chosen.decoder['hidden_size']}, "
            f"{chosen.image_tokens} image and {chosen.text_tokens} text tokens, random weights, "
            f"{str(chosen.dtype).removeprefix('torch.')}"
        ),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": timed,
        "memory": taken,
    }
    write_atomic(path, json.dumps(record, indent=1) + "\n")
    typer.echo(f"written to {path}")


if __name__ == "__main__":
    typer.run(run)
