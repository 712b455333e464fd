"""Blank images in place of those of the world of things."""

import pytest
from PIL import Image

from vlalign_utils.data.things.suites import about


def blank_things(patch: pytest.MonkeyPatch) -> None:
    """Draw nothing, for as long as the patch holds."""
    image = Image.new("RGB", (about.SIDE, about.SIDE))
    patch.setattr(about, "image_of", lambda subject: image)
