"""vlalign: where inside a vision-language model image and text meet."""

from vlalign_utils.driver.edits import CrossOff, FreezeTokens, Knockout, Patch, Revert
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.loading.load import load_vlm

__all__ = ["VLM", "CrossOff", "FreezeTokens", "Knockout", "Patch", "Revert", "Run", "load_vlm"]
