"""vlalign: where inside a vision-language model image and text meet."""

from vlalign_utils.edits import CrossOff, FreezeTokens, Knockout, Patch, Revert
from vlalign_utils.loading import load_vlm
from vlalign_utils.models import VLM
from vlalign_utils.trace import Run

__all__ = ["VLM", "CrossOff", "FreezeTokens", "Knockout", "Patch", "Revert", "Run", "load_vlm"]
