"""States of the same scene as an image and as a caption, neither of which sees the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlalign_utils.data.language import Language, describe
from vlalign_utils.data.pairs import Pair
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.states import Pooled, collect


def pair_states(
    vlm: VLM,
    pairs: Sequence[Pair],
    language: Language = "en",
    batch_size: int = 64,
    label: str = "pairs",
    *,
    dtype: torch.dtype = torch.float32,
    store: str | Path | None = None,
) -> Pooled:
    """States of each pair's image ("image", "last_image") and of its caption ("text", "last").

    The image comes with the request to describe it, the caption alone: neither sees the other.
    """
    ask = [describe(language)] * len(pairs)
    pictures = [pair.image for pair in pairs]
    kept: dict[str, Any] = {"dtype": dtype, "store": store}
    groups = ("image", "last_image")
    seen = collect(vlm, ask, pictures, groups, batch_size, f"{label}, pictures", **kept)
    return seen | caption_states(vlm, pairs, language, batch_size, f"{label}, captions", **kept)


def caption_states(
    vlm: VLM,
    pairs: Sequence[Pair],
    language: Language = "en",
    batch_size: int = 64,
    label: str = "captions",
    *,
    dtype: torch.dtype = torch.float32,
    store: str | Path | None = None,
) -> Pooled:
    """States of each pair's caption in one language alone: "text" and "last".

    Those of the other language are the other side of a transfer between two surfaces of the same meaning.
    """
    captions = [pair.caption[language] for pair in pairs]
    return collect(vlm, captions, None, ("text", "last"), batch_size, label, dtype=dtype, store=store)
