"""A processor for images and text, put together from a tokenizer and an image processor.

For models whose own processor also holds one for videos, which cannot be built without torchvision. How
many positions an image takes is asked of the model itself: it is the number of features it returns.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from vlalign_utils.driver.anatomy import find_anatomy, image_token_ids

Images = Image.Image | Sequence[Image.Image] | Sequence[Sequence[Image.Image]]


class ComposedProcessor:
    """Called as a processor is; `model` must be set before the first image."""

    def __init__(self, tokenizer: Any, image_processor: Any, chat_template: str | None = None) -> None:
        """Hold the parts; the tokenizer's chat template serves when there is no other."""
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.chat_template = chat_template or getattr(tokenizer, "chat_template", None)
        self.model: Any = None
        self._features: dict[Any, int] = {}  # features of an image, by the shapes of its inputs

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Write a conversation as text, or as token ids of that text: images are not expanded here."""
        return self.tokenizer.apply_chat_template(conversation, chat_template=self.chat_template, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Text of token ids."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Texts of rows of token ids."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def __call__(
        self,
        images: Images | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs of the model: one placeholder in the text per image, other arguments for the tokenizer.

        Raises ValueError when placeholders and images differ in number, or when the model cannot say how
        many positions an image takes.
        """
        if text is None:
            raise ValueError("text is missing: the placeholders of the images stand in it")
        texts = [text] if isinstance(text, str) else list(text)
        pictures = _flat(images)
        pixels: Mapping[str, Any] = {}
        ids = image_token_ids(self.model.config) if self.model is not None else set()
        placeholder = self._placeholder(texts, ids)
        counts = [t.count(placeholder) if placeholder else 0 for t in texts]
        if sum(counts) != len(pictures):
            raise ValueError(
                f"{len(pictures)} images but {sum(counts)} placeholders {placeholder or ''} in the text: "
                "write one for each image"
            )
        if pictures:
            left = iter(pictures)
            rows = [[next(left) for _ in range(count)] for count in counts]
            pixels = self.image_processor(images=[row for row in rows if row], return_tensors="pt")
            texts = [self._expand(t, placeholder, row) for t, row in zip(texts, rows, strict=True)]
        tokens = self.tokenizer(texts, return_token_type_ids=False, return_tensors=return_tensors, **kwargs)
        if pixels and return_tensors == "pt":
            tokens |= self._token_types(tokens["input_ids"], ids)
        return BatchFeature({**tokens, **pixels})

    def _placeholder(self, texts: Sequence[str], ids: set[int]) -> str:
        tokens = [self.tokenizer.convert_ids_to_tokens(i) for i in sorted(ids)]
        return next((token for token in tokens if token and any(token in t for t in texts)), "")

    def _expand(self, text: str, placeholder: str, images: Sequence[Image.Image]) -> str:
        pieces = text.split(placeholder)
        runs = [placeholder * self.n_features(image) for image in images]
        return pieces[0] + "".join(run + piece for run, piece in zip(runs, pieces[1:], strict=True))

    @torch.no_grad()
    def n_features(self, image: Image.Image) -> int:
        """How many positions the model fills with an image: the features that it returns for it."""
        ask = getattr(self.model, "get_image_features", None)
        if ask is None:
            raise ValueError(
                f"{type(self.model).__name__} cannot say how many positions an image takes: "
                "install torchvision to use its full processor"
            )
        inputs = self.image_processor(images=[[image]], return_tensors="pt")
        key = tuple(
            (name, tuple(v.shape), b"" if v.is_floating_point() else v.numpy().tobytes())
            for name, v in sorted(inputs.items())
        )
        if key not in self._features:
            names = inspect.signature(ask).parameters
            # Offloaded weights are nowhere; what is not offloaded says where inputs go.
            like = next((p for p in self.model.parameters() if not p.is_meta), torch.empty(0))
            taken = {n: v.to(like.device) for n, v in inputs.items() if n in names}
            output = ask(**{n: v.to(like.dtype) if v.is_floating_point() else v for n, v in taken.items()})
            features = getattr(output, "pooler_output", output)
            parts = [features] if isinstance(features, Tensor) else list(features)
            self._features[key] = sum(part.flatten(end_dim=-2).shape[0] for part in parts)
        return self._features[key]

    def _token_types(self, input_ids: Tensor, ids: set[int]) -> dict[str, Tensor]:
        types = torch.isin(input_ids, torch.tensor(sorted(ids))).long()
        names = find_anatomy(self.model).input_names()
        return {name: types for name in ("mm_token_type_ids", "token_type_ids") if name in names}


def _flat(images: Images | None) -> list[Image.Image]:
    if images is None:
        return []
    if isinstance(images, Image.Image):
        return [images]
    return [image for part in images for image in ([part] if isinstance(part, Image.Image) else part)]
