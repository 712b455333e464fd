"""A forced choice: log probabilities of many answers to one question about one image."""

import torch
from torch import Tensor

from benchmarks.sizes import Size, build
from benchmarks.timing import Row, compare
from vlalign_utils.inference.shared_prompt import log_probs

ANSWERS, TOKENS = 20, 6  # of an answer, its end included


def rows(size: Size) -> list[Row]:
    """Every answer with an image and a question of its own, in one batch, and all behind one question."""
    vlm, asked = build(size)
    written = torch.randint(
        3, size.image_id - 3, (ANSWERS, TOKENS), generator=torch.Generator().manual_seed(1)
    )
    answers = written.to(vlm.device)
    prompt = asked["input_ids"].expand(ANSWERS, -1)
    ids = torch.cat([prompt, answers], dim=1)
    pixels = asked["pixel_values"]
    place = torch.arange(ids.shape[1], device=vlm.device)[None] >= prompt.shape[1]

    def inputs(rows: int) -> dict[str, Tensor]:
        return {
            "input_ids": ids[:rows],
            "attention_mask": torch.ones_like(ids[:rows]),
            "pixel_values": pixels.expand(rows, *pixels.shape[1:]).contiguous(),
        }

    @torch.no_grad()
    def apart() -> Tensor:
        logits = vlm.model(**inputs(ANSWERS), use_cache=False).logits[:, -TOKENS - 1 : -1].float()
        return logits.log_softmax(-1).gather(-1, answers[..., None])[..., 0].sum(1).double().cpu()

    def together() -> Tensor:
        (found,) = log_probs(vlm, inputs(1), place, [written.tolist()])
        return torch.from_numpy(found)

    tolerance = 1e-5 if size.dtype == torch.float32 else 0.05
    ways = {"image and question again for every answer": apart, "image and question once": together}
    return compare(f"log probabilities of {ANSWERS} answers", ways, size.rounds, tolerance)
