"""Keep transformers from printing what changes from run to run, or what is no news."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as verbosity


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """No bar with changing times outside a terminal."""
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
    """No report and no bar at all, for a loading that only looks whether another would succeed."""
    level, bar = verbosity.get_verbosity(), verbosity.is_progress_bar_enabled()
    verbosity.set_verbosity_error()
    verbosity.disable_progress_bar()
    try:
        yield
    finally:
        verbosity.set_verbosity(level)
        if bar:
            verbosity.enable_progress_bar()
