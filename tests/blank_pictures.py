"""Blank pictures in place of drawn ones."""

import dataclasses

import numpy as np
import pytest

from vlalign_utils.data.kinds import KINDS
from vlalign_utils.data.render import SIDE


def blank(patch: pytest.MonkeyPatch) -> None:
    """Draw nothing, for as long as the patch holds."""
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    for name, kind in KINDS.items():
        patch.setitem(KINDS, name, dataclasses.replace(kind, render=lambda subject: image))
