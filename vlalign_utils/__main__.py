"""`python -m vlalign_utils COMMAND`."""

from vlalign_utils.cli import app

app()
