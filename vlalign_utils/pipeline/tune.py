"""A study's fine-tunes, shared among processes and put on record."""

import json
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.execute import RunError
from vlalign_utils.pipeline.stages import load_stages
from vlalign_utils.pipeline.staleness import plan
from vlalign_utils.tuning.outcomes import Study
from vlalign_utils.tuning.protocol import protocol_of
from vlalign_utils.tuning.strategies import Strategy
from vlalign_utils.tuning.study import Trainer, compared, seeds_of, study
from vlalign_utils.tuning.study_records import committed, records

TUNING = "05_tuning"  # the notebook whose parameters a study is trained by

_OPEN: dict[str, Trainer] = {}  # of a worker process, by architecture


def tune(arch: str, cores: int = 1) -> tuple[Study, Path]:
    """Train what is missing of an architecture's study, and write all its records to `book/studies`.

    Args:
        arch: entry of the registry.
        cores: processes that train at once, of one thread each.

    Returns the study and the file of its records. A killed run goes on from its log.
    Raises what `execute.Expected` names for parameters, models or records that are not as they should be.
    """
    torch.set_num_threads(1)
    everything = plan(TUNING, arch, {}, False, ROOT, fetch=True)[0]
    entry, log = registry.load().architecture(arch), records(arch).log.path
    protocol = protocol_of(everything, entry.world)
    aligned, tuned = load_stages(entry, 2).values()  # what cannot be loaded is said before processes start
    chosen = compared(aligned.n_layers, protocol)
    runs = [(s, seed) for seed in range(protocol.seeds) for s in chosen if seed in seeds_of(s, protocol)]
    spawn = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(cores, spawn, _open, (arch, everything, log)) as pool:
            list(pool.map(_try_rates, chosen))
            list(pool.map(_run, *zip(*runs, strict=True)))
    except BrokenProcessPool:
        raise RunError(
            f"a process that trains {arch} ended: is there memory for {cores} at once? With CORES=1 it goes "
            "on where it was"
        ) from None
    kept = records(arch, log)
    found = study(aligned, tuned, protocol, kept, show=True)
    path = committed(arch)
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept.used.values()))
    return found, path


def _open(arch: str, params: dict[str, Any], log: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # else an interrupted process begins its next run
    torch.set_num_threads(1)
    entry = registry.load().architecture(arch)
    vlm = next(iter(load_stages(entry, 2).values()))
    _OPEN[arch] = Trainer(vlm, protocol_of(params, entry.world), records(arch, log), show=True)


def _trainer() -> Trainer:
    """This process' trainer, which knows what others have put on record by now."""
    ((arch, trainer),) = _OPEN.items()
    trainer.kept = records(arch, trainer.kept.log.path)
    return trainer


def _try_rates(strategy: Strategy) -> None:
    _trainer().trials(strategy)


def _run(strategy: Strategy, seed: int) -> None:
    _trainer().run(strategy, seed)
