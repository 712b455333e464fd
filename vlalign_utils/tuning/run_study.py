"""`make tune ARCH=llava`: train what is missing for a chapter on tuning, resuming where it stopped."""

import json
from typing import Annotated

import torch
import typer

from vlalign_utils.loading.load import load_vlm
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.parameters import ParameterError
from vlalign_utils.pipeline.staleness import plan
from vlalign_utils.tuning.study import protocol_of, study
from vlalign_utils.tuning.study_records import committed, records

NOTEBOOK = "05_tuning"


def run(arch: Annotated[str, typer.Argument(help="entry of architectures.yml")]) -> None:
    """Train every strategy with the registry's parameters; keep what was found in book/studies."""
    try:
        params = plan(NOTEBOOK, arch, {}, False, ROOT)[0]
    except (ParameterError, registry.RegistryError) as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    torch.set_num_threads(1)
    entry = registry.load().architecture(arch)
    aligned, tuned = (load_vlm(entry.model, stage, revision=entry.revision) for stage in entry.stages[-2:])
    kept = records(arch)
    found = study(aligned, tuned, protocol_of(params), kept, show=True)
    path = committed(arch)
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept.used.values()))
    typer.echo(f"{path.relative_to(ROOT)}: {sum(map(len, found.found.values()))} runs")


if __name__ == "__main__":
    typer.run(run)
