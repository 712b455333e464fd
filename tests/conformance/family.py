"""The registry of conformance families: one tiny random model per transformers model type."""

from collections.abc import Callable
from dataclasses import dataclass

from tiny_models import Built


@dataclass(frozen=True)
class Family:
    """A model type, the group whose way of bringing pixels in it shares, and how to build it tiny.

    Groups: decoder (image features take token positions of a plain causal decoder), inner (the same, in a
    CausalLM or Q-Former model inside), bidirectional (image tokens attend both ways), early (image tokens
    are discrete codes or raw patches), deepstack (vision features are added between layers as well),
    shared (layers share keys, values or several streams), moe (mixture of experts), hybrid (layers that mix
    tokens without attention), cross (cross-attention or encoder-decoder: no position holds the image).
    """

    name: str
    group: str
    build: Callable[[], Built]


GROUPS = (
    "decoder",
    "inner",
    "bidirectional",
    "early",
    "deepstack",
    "shared",
    "moe",
    "hybrid",
    "cross",
)
FAMILIES: dict[str, Family] = {}
UNBUILT: dict[str, str] = {}  # model types that cannot be built from configuration alone, and why


def family(name: str, group: str) -> Callable[[Callable[[], Built]], Callable[[], Built]]:
    """Register the decorated builder under its transformers model type."""
    assert group in GROUPS, group

    def register(build: Callable[[], Built]) -> Callable[[], Built]:
        assert name not in FAMILIES, name
        FAMILIES[name] = Family(name, group, build)
        return build

    return register
