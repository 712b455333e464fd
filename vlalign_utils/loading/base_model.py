"""Find the base language model of a vision-language model and check it before either is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig

from vlalign_utils.loading.assembled import whole
from vlalign_utils.loading.base_weights import Plan, plan, write_weights
from vlalign_utils.loading.checkpoint import (
    LOG,
    Checkpoint,
    check_weights,
    fetch_small,
    fetch_weights,
    locate,
)
from vlalign_utils.loading.safetensors_headers import Header, fingerprint, read_headers
from vlalign_utils.loading.source import BaseWeights


@dataclass(frozen=True)
class Replacement:
    """A base language model that fits, and what of it goes where."""

    checkpoint: Checkpoint
    headers: Mapping[str, Header]
    plan: Plan

    def apply(self, model: nn.Module) -> BaseWeights:
        """Fetch the base's weights and write them into a loaded model. Raises ValueError where that fails."""
        folder = fetch_weights(self.checkpoint, {swap.file for swap in self.plan.swaps})
        write_weights(model, self.plan.swaps, folder)
        base = self.checkpoint
        LOG.info(
            "%d weights of the language model are those of %s; kept: %s",
            len(self.plan.swaps),
            base.name,
            ", ".join(self.plan.kept) or "none",
        )
        return BaseWeights(
            name=base.name,
            revision=base.revision,
            fingerprint=None if base.revision else fingerprint(base),
            replaced=len(self.plan.swaps),
            kept=self.plan.kept,
        )


def check_pair(
    checkpoint: Checkpoint, base: str | Path | None, base_revision: str | None, quantization: str | None
) -> bool:
    """True where the base language model's weights are asked for; ValueError for what cannot be combined."""
    wanted = checkpoint.stage == "base" and not checkpoint.in_chain
    if (base is not None or base_revision is not None) and not wanted:
        why = "it is a chain with a base of its own" if checkpoint.in_chain else 'it goes with stage="base"'
        given = f"base={str(base)!r}" if base is not None else f"base_revision={base_revision!r}"
        raise ValueError(f"{given} has no use for {checkpoint.name}: {why}")
    if wanted and quantization:
        raise ValueError(f"quantization={quantization!r} cannot be combined with stage='base'")
    return wanted


def find_base(
    checkpoint: Checkpoint,
    config: Any,
    empty: nn.Module,
    base: str | Path | None = None,
    base_revision: str | None = None,
    trust_remote_code: bool = False,
) -> Replacement:
    """Find the base language model, given or recorded in the configuration, and match it to an empty model.

    Raises ValueError when there is none, when it cannot be found or read, or when it does not fit.
    """
    name = base if base is not None else recorded_base(config)
    if name is None:
        raise ValueError(
            f"stage='base': the configuration of {checkpoint.name} records no base language model, "
            "pass its hub id or folder with base="
        )
    try:
        found = whole(locate(name, revision=base_revision))
        check_weights(found)
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"the base language model of {checkpoint.name}, pass another with base=: {error}"
        ) from None
    tied = False
    if "config.json" in found.files:
        text = AutoConfig.from_pretrained(fetch_small(found), trust_remote_code=trust_remote_code)
        tied = bool(getattr(text.get_text_config(decoder=True), "tie_word_embeddings", False))
    headers = read_headers(found)
    return Replacement(found, headers, plan(empty, checkpoint.name, found.name, headers, tied))


def recorded_base(config: Any) -> str | None:
    """Hub id or folder of the language model that a configuration says it was made from."""
    text = config.get_text_config(decoder=True)
    name = getattr(text, "_name_or_path", "") if text is not config else ""
    return name or None
