"""Verbosity of transformers: no progress bars outside a terminal, no messages from dry runs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as verbosity


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide progress bars, which hold times, outside a terminal."""
    hide_bar = verbosity.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide_bar:
        verbosity.disable_progress_bar()
    try:
        yield
    finally:
        if hide_bar:
            verbosity.enable_progress_bar()


@contextmanager
def without_messages() -> Iterator[None]:
    """Hide messages and progress bars, for a dry run of loading."""
    level, bar = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        yield
    finally:
        verbosity.set_verbosity(level)
        if bar:
            verbosity.enable_progress_bar()
