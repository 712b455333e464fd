"""`python -m vlalign_utils.book toc|build|serve`."""

import time
from typing import Annotated

import typer

from vlalign_utils.book import build as pages
from vlalign_utils.book import toc as contents
from vlalign_utils.book.serve import PORT, server
from vlalign_utils.evidence.results import ResultsError
from vlalign_utils.paths import ROOT, write_atomic
from vlalign_utils.pipeline import registry
from vlalign_utils.pipeline.registry import RegistryError

app = typer.Typer(add_completion=False, help=__doc__)


def _fail(error: Exception) -> typer.Exit:
    typer.echo(f"Error: {error}", err=True)
    return typer.Exit(1)


@app.command()
def toc() -> None:
    """Write `_toc.yml` from architectures.yml."""
    try:
        write_atomic(ROOT / "_toc.yml", contents.render(registry.load()))
    except RegistryError as error:
        raise _fail(error) from None


@app.command()
def build() -> None:
    """Build all pages from complete results into _build/html."""
    start = time.monotonic()
    try:
        folder = pages.build()
    except (pages.BookError, RegistryError, ResultsError) as error:
        raise _fail(error) from None
    index = (folder / "index.html").relative_to(ROOT)
    typer.echo(f"{index}: built in {time.monotonic() - start:.0f} s")


@app.command()
def serve(port: Annotated[int, typer.Option(help="first port to try")] = PORT) -> None:
    """Open the built book to this machine, until Ctrl+C."""
    try:
        running = server(ROOT / "_build" / "html", port)
    except OSError as error:
        raise _fail(error) from None
    with running:
        typer.echo(f"The book is at http://127.0.0.1:{running.server_port}/  (Ctrl+C stops)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")


if __name__ == "__main__":
    app()
