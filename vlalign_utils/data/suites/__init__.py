"""Benchmarks: one module a suite, and this registry. A new suite is its file and its name here."""

from vlalign_utils.data.suites import (
    attributes,
    captions,
    charts,
    compositional,
    counting,
    digits,
    existence,
    knowledge,
    reading,
    text,
)
from vlalign_utils.data.suites.protocol import Item, Metric, Suite

__all__ = ["SUITES", "Item", "Metric", "Suite"]

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (
        attributes,
        existence,
        counting,
        digits,
        charts,
        reading,
        knowledge,
        compositional,
        captions,
        text,
    )
}
