"""Where the answers' tokens are in what a processor made of prompts with answers appended."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from vlalign_utils.driver.vlm import VLM


def answer_mask(
    vlm: VLM,
    inputs: Mapping[str, Tensor],
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None,
    answers: Sequence[str],
) -> Bool[Tensor, "batch tokens"]:
    """Positions of the answers' tokens, ends included, in what `vlm.prepare` made of these items.

    A row whose answer reads otherwise after its prompt than alone (a tokenizer may put a space before a
    text, or join it with the prompt's end) is compared with its prompt prepared without the answer.
    """
    ids, attended = inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool()
    eos = vlm.tokenizer.eos_token
    alone = [vlm.tokenizer(answer + eos, add_special_tokens=False)["input_ids"] for answer in answers]
    lengths = [
        len(a) if row[len(row) - len(a) :].tolist() == a else 0 for row, a in zip(ids, alone, strict=True)
    ]
    unclear = [i for i, length in enumerate(lengths) if length == 0]
    if unclear:
        pictures = None if images is None else [images[i] for i in unclear]
        prompt = vlm.prepare([prompts[i] for i in unclear], pictures)
        for i, before, seen in zip(
            unclear, prompt["input_ids"].cpu(), prompt["attention_mask"].cpu(), strict=True
        ):
            whole, part = ids[i][attended[i]], before[seen.bool()]
            n = min(len(whole), len(part))
            same = (whole[:n] == part[:n]).long().cumprod(0).sum().item()
            lengths[i] = len(whole) - int(same)
    from_end = torch.arange(ids.shape[1], 0, -1)
    return (from_end <= torch.tensor(lengths)[:, None]).to(inputs["input_ids"].device)
