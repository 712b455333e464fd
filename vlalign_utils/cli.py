"""The command line: `python -m vlalign_utils COMMAND`. The Makefile calls it.

Commands import what they need when they run: help must not wait for torch.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from vlalign_utils.paths import ROOT, os_error, write_atomic

app = typer.Typer(
    name="python -m vlalign_utils",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Measure where image and text meet in vision-language models, and publish it as a book.",
)


@contextmanager
def _one_sentence(*expected: type[Exception]) -> Iterator[None]:
    """Show an expected error, or one of the system, as one sentence; any other is a fault of ours."""
    try:
        yield
    except (*expected, OSError) as error:  # type: ignore[misc]
        told = os_error(error) if isinstance(error, OSError) else error
        typer.echo(f"Error: {told}", err=True)
        raise typer.Exit(1) from None


@app.command()
def run(
    nb: Annotated[str, typer.Option(help="notebook, such as 04_causal")],
    arch: Annotated[str, typer.Option(help="entry of architectures.yml, or comparison")],
    params: Annotated[Path | None, typer.Option(help="YAML file with parameters of your own")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="small sizes, to try it out")] = False,
    if_stale: Annotated[bool, typer.Option("--if-stale", help="only when its inputs have changed")] = False,
    cell_timeout: Annotated[
        int | None,
        typer.Option(
            min=1,
            envvar="VLALIGN_CELL_TIMEOUT",
            help="seconds a cell may take; default: the entry's, or 3600",
        ),
    ] = None,
) -> None:
    """Execute one notebook on one architecture and publish it in book/results."""
    from vlalign_utils.pipeline import execute, staleness

    start = time.monotonic()
    with _one_sentence(*execute.Expected):
        if if_stale and staleness.fresh(nb, arch):
            return
        path = execute.execute(
            nb, arch, execute.read_params(params) if params else {}, quick, cell_timeout=cell_timeout
        )
    typer.echo(f"{path.relative_to(ROOT)}: {time.monotonic() - start:.0f} s")
    if params:
        typer.echo("The next make book restores the registry's parameters; to keep these, put them there.")


@app.command()
def book(
    archs: Annotated[str, typer.Option(help="comma list, or all; default: the first laboratory model")] = "",
    cores: Annotated[int, typer.Option(min=1, help="notebooks that run side by side")] = 2,
) -> None:
    """Execute every notebook that is stale, then build the pages in _build/html."""
    from vlalign_utils.pipeline import execute, rebuild

    with _one_sentence(*execute.Expected, rebuild.RebuildError):
        rebuild.rebuild(archs, cores)
    typer.echo("The book is up to date: _build/html/index.html")


@app.command()
def pages() -> None:
    """Build the pages from the results there are; no notebook is executed."""
    from vlalign_utils.book import build
    from vlalign_utils.pipeline import execute, staleness

    with _one_sentence(*execute.Expected, build.BookError):
        start, before, stamp = time.monotonic(), staleness.page_hash(), ROOT / staleness.PAGES
        if staleness.pages_current():
            return
        stamp.unlink(missing_ok=True)
        index = (build.build() / "index.html").relative_to(ROOT)
        write_atomic(stamp, before)
    typer.echo(f"{index}: built in {time.monotonic() - start:.0f} s")


@app.command()
def toc() -> None:
    """Regenerate _toc.yml after a change of architectures.yml."""
    from vlalign_utils.book import toc as contents
    from vlalign_utils.pipeline import registry

    with _one_sentence(registry.RegistryError):
        write_atomic(ROOT / "_toc.yml", contents.render(registry.load()))


@app.command()
def cards() -> None:
    """Write the cards of chains from pretrained parts again, from the records in zoo/."""
    from vlalign_utils.book.pages import parts_card
    from vlalign_utils.pipeline import registry

    with _one_sentence(ValueError):
        parts_card.write_all(registry.load(), ROOT)


@app.command()
def serve(port: Annotated[int, typer.Option(min=1, max=65535, help="first port to try")] = 8000) -> None:
    """Open the built book to this machine alone, until Ctrl+C."""
    from vlalign_utils.book.serve import server

    with _one_sentence():
        running = server(ROOT / "_build" / "html", port)
    with running:
        typer.echo(f"The book is at http://127.0.0.1:{running.server_port}/  (Ctrl+C stops)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")


@app.command()
def tune(
    arch: Annotated[str, typer.Argument(help="entry of architectures.yml")],
    cores: Annotated[int, typer.Option(min=1, help="processes that train at once")] = 1,
) -> None:
    """Train every strategy of the chapter on tuning, resuming; records go to book/studies."""
    from vlalign_utils.pipeline import execute
    from vlalign_utils.pipeline.tune import tune as train

    with _one_sentence(*execute.Expected):
        found, path = train(arch, cores)
    typer.echo(f"{path.relative_to(ROOT)}: {sum(map(len, found.found.values()))} runs")


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="folder or hub id; only its config.json is read")],
    band: Annotated[tuple[int, int], typer.Option(help="first and stop: decoder layers to train")] = (0, 0),
    batch_size: Annotated[int, typer.Option(help="sequences at once on one device")] = 1,
    tokens: Annotated[int, typer.Option(help="of a sequence, those of its image among them")] = 1024,
    lora: Annotated[int, typer.Option(help="rank of LoRA in the band, 0 for full weights")] = 0,
    connector: Annotated[bool, typer.Option("--connector", help="train the connector too")] = False,
    dtype: Annotated[str, typer.Option(help="of the frozen weights")] = "bfloat16",
    optimiser: Annotated[str, typer.Option(help="adamw or adamw8bit")] = "adamw",
    checkpointing: Annotated[bool, typer.Option(help="compute activations again")] = True,
    accumulate: Annotated[int, typer.Option(help="batches whose gradients are added up")] = 1,
    devices: Annotated[int, typer.Option(help="each holds everything")] = 1,
    items: Annotated[int, typer.Option(help="whose prefixes are recorded")] = 0,
    memory: Annotated[float, typer.Option(help="free GiB of a device, to be told what fits")] = 0.0,
    answers: Annotated[int, typer.Option(help="tokens of a sequence with a loss, 0 for all")] = 0,
    revision: Annotated[str | None, typer.Option(help="of a model on the hub")] = None,
) -> None:
    """Print the memory that tuning a band of decoder layers takes, beside full tuning; nothing is loaded."""
    from vlalign_utils.tuning import memory_plan

    sizes = {
        "batch_size": batch_size,
        "tokens": tokens,
        "items": items,
        "dtype": dtype,
        "optimiser": optimiser,
        "checkpointing": checkpointing,
        "accumulate": accumulate,
        "devices": devices,
        "answers": answers or None,
        "revision": revision,
    }
    with _one_sentence(ValueError):
        plans = memory_plan.beside_full(model, band, lora, connector, sizes)
    typer.echo(memory_plan.table(plans))
    for one in plans if memory else ():
        typer.echo(one.advice(round(memory * 2**30)))


@app.command()
def zoo(
    chain: Annotated[str, typer.Argument(help="a recipe, zoo/recipes/CHAIN.yml")],
    device: Annotated[str, typer.Option(help="cpu or cuda; several GPUs: accelerate launch -m")] = "cpu",
) -> None:
    """Train an embedded model from its recipe, resuming where it stopped; score it and write its card."""
    from vlalign_utils.book.pages import parts_card
    from vlalign_utils.pipeline import registry
    from vlalign_utils.zoo.build import build

    with _one_sentence(ValueError, FloatingPointError):
        folder = build(chain, device)
        parts_card.write_all(registry.load(), ROOT)
    typer.echo(f"{folder.parent.name}/{folder.name} is ready")
