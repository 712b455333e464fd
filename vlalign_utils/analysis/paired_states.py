"""States of the same scene as an image and as a caption, neither of which sees the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlalign_utils.data.paired import Pair
from vlalign_utils.driver.vlm import VLM
from vlalign_utils.inference.states import Pooled, collect


def pair_states(
    vlm: VLM,
    pairs: Sequence[Pair],
    wording: str = "en",
    batch_size: int = 64,
    label: str = "pairs",
    *,
    dtype: torch.dtype = torch.float32,
    store: str | Path | None = None,
) -> Pooled:
    """States of each pair's image ("image", "last_image") and of its caption ("text", "last").

    The image comes with the request to describe it, the caption alone: neither sees the other.
    """
    ask = [pair.ask for pair in pairs]
    pictures = [pair.image for pair in pairs]
    kept: dict[str, Any] = {"dtype": dtype, "store": store}
    groups = ("image", "last_image")
    seen = collect(vlm, ask, pictures, groups, batch_size, f"{label}, pictures", **kept)
    return seen | caption_states(vlm, pairs, wording, batch_size, f"{label}, captions", **kept)


def caption_states(
    vlm: VLM,
    pairs: Sequence[Pair],
    wording: str = "en",
    batch_size: int = 64,
    label: str = "captions",
    *,
    dtype: torch.dtype = torch.float32,
    store: str | Path | None = None,
) -> Pooled:
    """States of each pair's text in one wording alone: "text" and "last".

    Those of another wording are the other side of a transfer between two surfaces of the same meaning.
    """
    captions = [pair.caption[wording] for pair in pairs]
    return collect(vlm, captions, None, ("text", "last"), batch_size, label, dtype=dtype, store=store)
