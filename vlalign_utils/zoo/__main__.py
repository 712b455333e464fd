"""`python -m vlalign_utils.zoo CHAIN` trains a chain, resuming where it stopped."""

import typer

from vlalign_utils.zoo.build import build


def main(chain: str) -> None:
    """Train the chain named by zoo/recipes/CHAIN.yml."""
    try:
        folder = build(chain)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"zoo: {error}") from None
    print(f"{folder.parent.name}/{folder.name} is ready")


typer.run(main)
