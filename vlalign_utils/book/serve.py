"""Serve the built pages on this machine only."""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 8000
TRIES = 50


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing about single requests."""


def server(folder: Path, port: int = PORT) -> ThreadingHTTPServer:
    """A server of `folder` on 127.0.0.1, on `port` or the next free one.

    Raises FileNotFoundError when the book has not been built, OSError when no port is free.
    """
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder} holds no built book; run: make book")
    handler = partial(_Quiet, directory=str(folder))
    for candidate in range(port, min(port + TRIES, 65536)):
        try:
            return ThreadingHTTPServer(("127.0.0.1", candidate), handler)
        except OSError:
            continue
    raise OSError(f"no free port from {port} to {candidate} on 127.0.0.1")
