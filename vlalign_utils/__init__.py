"""vlalign: where inside a vision-language model image and text meet.

The public names below load their module when they are first used, so importing the package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlalign_utils.data.items import Item
    from vlalign_utils.data.worlds import load_suite
    from vlalign_utils.driver.edits import CrossOff, FreezeTokens, Knockout, Patch, Revert
    from vlalign_utils.driver.recording import Replay, Run
    from vlalign_utils.driver.vlm import VLM
    from vlalign_utils.evidence.intervals import Interval
    from vlalign_utils.evidence.results import Report
    from vlalign_utils.inference.scoring import evaluate
    from vlalign_utils.inference.states import capture, collect
    from vlalign_utils.interventions.band import find_band
    from vlalign_utils.loading.load import load_vlm
    from vlalign_utils.tuning.export import save
    from vlalign_utils.tuning.finetune import Budget, tune
    from vlalign_utils.tuning.strategies import Strategy

PLACES = {
    "VLM": "driver.vlm",
    "Budget": "tuning.finetune",
    "CrossOff": "driver.edits",
    "FreezeTokens": "driver.edits",
    "Interval": "evidence.intervals",
    "Item": "data.items",
    "Knockout": "driver.edits",
    "Patch": "driver.edits",
    "Replay": "driver.recording",
    "Report": "evidence.results",
    "Revert": "driver.edits",
    "Run": "driver.recording",
    "Strategy": "tuning.strategies",
    "capture": "inference.states",
    "collect": "inference.states",
    "evaluate": "inference.scoring",
    "find_band": "interventions.band",
    "load_suite": "data.worlds",
    "load_vlm": "loading.load",
    "save": "tuning.export",
    "tune": "tuning.finetune",
}

__all__ = [
    "VLM",
    "Budget",
    "CrossOff",
    "FreezeTokens",
    "Interval",
    "Item",
    "Knockout",
    "Patch",
    "Replay",
    "Report",
    "Revert",
    "Run",
    "Strategy",
    "capture",
    "collect",
    "evaluate",
    "find_band",
    "load_suite",
    "load_vlm",
    "save",
    "tune",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use. Raises AttributeError for any other."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Public names, loaded or not."""
    return sorted({*globals(), *__all__})
