"""A vision-language model with its processor: inputs from texts and images, and what the model allows."""

import logging
from collections.abc import Collection, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vlalign_utils.driver import capability_trials
from vlalign_utils.driver.capabilities import Capabilities
from vlalign_utils.driver.driver import Driver
from vlalign_utils.driver.image_positions import pixels
from vlalign_utils.driver.prompts import prepare
from vlalign_utils.driver.recording import Run
from vlalign_utils.driver.turns import end_ids

LOG = logging.getLogger("vlalign")
QUESTIONS = ("What is this?", "Is there a square or a circle in this picture, and where is it?")


class VLM(Driver):
    """Loaded transformers vision-language model, with its processor if there is one.

    The model is used as it is: its weights, precision and train or eval mode are never changed.

    Args:
        model: any image-text-to-text model of transformers.
        processor: its processor, needed for `prepare` only.

    Raises:
        ValueError: when the decoder layers cannot be told apart.

    Example:
        >>> from vlalign_utils import VLM, load_vlm
        >>> loaded = load_vlm("zoo/llava")
        >>> vlm = VLM(loaded.model, loaded.processor)
        >>> vlm.n_layers, vlm.d_model
        (8, 96)
    """

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        """Find the decoder layers. Raises ValueError when they cannot be told apart."""
        super().__init__(model)
        self.processor = processor
        self.source: Any = None  # where the model came from, noted by load_vlm
        self._first_inputs: dict[str, Any] | None = None  # the first recorded inputs with an image
        self._capabilities: Capabilities | None = None
        self._refused = False  # whether the processor refused the trial's images

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the processor, or the processor itself where it is one."""
        return getattr(self.processor, "tokenizer", self.processor)

    def prepare(
        self,
        prompts: Collection[str],
        images: Collection[Image.Image] | None = None,
        answers: Collection[str] | None = None,
    ) -> dict[str, Tensor]:
        """Model inputs, left padded and on the device: one user turn per prompt, with its image.

        The chat template adds the generation prompt, or writes each of `answers` as the assistant's turn, up
        to the token that ends it; without a template the processor's plain format is used.

        Args:
            prompts: one text for each item of the batch.
            images: one PIL image for each prompt, of any mode and size; None for text alone.
            answers: one answer for each prompt.

        Returns:
            Tensors by the names of the model's forward, `input_ids` [batch, tokens] among them.

        Raises:
            TypeError: for what is no list of texts or of PIL images.
            ValueError: when lengths differ, when a text is empty or an image cannot be made RGB of 8 bits,
                and when the template cannot write the turns.

        Example:
            >>> from PIL import Image
            >>> from vlalign_utils import load_vlm
            >>> vlm = load_vlm("zoo/llava")
            >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
            >>> sorted(inputs)
            ['attention_mask', 'input_ids', 'pixel_values']
        """
        inputs = prepare(self.processor, prompts, images, answers, end_ids(self.model, self.tokenizer))
        known = self.anatomy.input_names()
        weights = self._weights()
        return {
            name: value.to(weights) if value.is_floating_point() else value.to(weights.device)
            for name, value in inputs.items()
            if name in known
        }

    def record(self, *, stop: int | None = None, kv_cache: bool = False, **inputs: Any) -> Run:
        """Run the whole model once, as `Driver.record` does."""
        run = super().record(stop=stop, kv_cache=kv_cache, **inputs)
        if self.processor is None and self._first_inputs is None and pixels(inputs):
            self._first_inputs = inputs
        return run

    def capabilities(self, inputs: Mapping[str, Any] | None = None) -> Capabilities:
        """Findings on what can be done with this model, each made by trying it once.

        The trial takes `inputs` (with an image), else two small images with a question each through the
        processor, else the first inputs with an image that were recorded.

        Args:
            inputs: keyword arguments of the model's forward, by name; None for the model's own trial, which
                is made once.

        Raises:
            ValueError: when there are no inputs with an image to try it on.

        Example:
            >>> from vlalign_utils import load_vlm
            >>> allowed = load_vlm("zoo/llava").capabilities()
            >>> allowed.knockout.works, allowed.cross_off.detail
            (True, 'there is no cross-attention')
        """
        if inputs is not None or self._capabilities is None:
            if inputs is None:
                inputs = self._first_inputs if self.processor is None else self.trial_inputs()
            if inputs is None:
                raise ValueError(
                    "to find out what this model allows, give `inputs` with an image: it has no processor"
                )
            self._capabilities = capability_trials.probe(self, inputs)
        return self._capabilities

    def own_capabilities(self) -> Capabilities | None:
        """Capabilities by the model's own trial; None, logged once, where its processor refuses the trial.

        A processor without images, or one that takes no such small ones, may still take the user's inputs.
        Raises NotFiniteError where the model gives NaN or infinity.
        """
        if self._capabilities is not None:
            return self._capabilities
        if self._refused:
            return None
        try:
            inputs = self.trial_inputs()
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as reason:
            self._refused = True
            name = self.source.name if self.source else type(self.model).__name__
            LOG.warning("%s: not tried out, its processor refuses the trial: %s", name, reason)
            return None
        self._capabilities = self.capabilities(inputs)
        return self._capabilities

    def trial_inputs(self) -> dict[str, Tensor]:
        """Model inputs of two questions of different length, each about a small image of its own.

        Raises ValueError when there is no processor or no chat template.
        """
        noise = torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0))
        images = [Image.fromarray(image.numpy()) for image in noise.to(torch.uint8)]
        return self.prepare(QUESTIONS, images)
