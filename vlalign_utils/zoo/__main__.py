"""`python -m vlalign_utils.zoo CHAIN` trains a chain, resuming where it stopped."""

import typer

from vlalign_utils.zoo.build import build


def main(chain: str, device: str = "cpu") -> None:
    """Train the chain named by zoo/recipes/CHAIN.yml; on several GPUs, under `accelerate launch -m`."""
    try:
        folder = build(chain, device)
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        raise SystemExit(f"zoo: {error}") from None
    print(f"{folder.parent.name}/{folder.name} is ready")


typer.run(main)
