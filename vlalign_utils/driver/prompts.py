"""Turn prompts, images and answers into model inputs with whatever processor the model came with."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor


def prepare(
    processor: Any,
    prompts: Sequence[str],
    images: Sequence[Image.Image] | None = None,
    answers: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """Left-padded inputs for one user turn per prompt, the answer appended when there is one.

    Raises ValueError when there is no processor or no chat template, or when lengths differ.
    """
    if processor is None:
        raise ValueError("this VLM has no processor: load it with load_vlm, or pass processor=")
    for name, given in (("images", images), ("answers", answers)):
        if given is not None and len(given) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(given)} {name}: give one each")
    if not prompts:
        raise ValueError("prompts is empty")
    tokenizer = getattr(processor, "tokenizer", processor)
    templated = next((p for p in (processor, tokenizer) if getattr(p, "chat_template", None)), None)
    if templated is None:
        raise ValueError(
            "neither the processor nor its tokenizer has a chat template: build the inputs yourself"
        )
    image = [{"type": "image"}] if images is not None else []
    texts = [
        templated.apply_chat_template(
            [{"role": "user", "content": [*image, {"type": "text", "text": prompt}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    # A template that writes the first special token itself must not get it twice.
    written = bool(tokenizer.bos_token) and texts[0].startswith(tokenizer.bos_token)
    if answers is not None:
        texts = [text + answer + tokenizer.eos_token for text, answer in zip(texts, answers, strict=True)]
    pictures = {} if images is None else {"images": [[image] for image in images]}
    return dict(
        processor(
            text=texts,
            **pictures,
            padding=True,
            padding_side="left",
            add_special_tokens=not written,
            return_tensors="pt",
        )
    )
