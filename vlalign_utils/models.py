"""VLM: the one driver of every vision-language model, whatever its family."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn

from vlalign_utils import positions, trace
from vlalign_utils.discovery import find_anatomy, image_token_ids
from vlalign_utils.edits import Edit, check_edits, check_layer
from vlalign_utils.positions import pixels
from vlalign_utils.prompts import prepare
from vlalign_utils.trace import Replay, Run


class VLM:
    """A loaded transformers vision-language model, with its processor if there is one.

    The model is used as it is: its weights, precision and train or eval mode are never changed.
    """

    def __init__(self, model: nn.Module, processor: Any = None) -> None:
        """Find the decoder layers. Raises ValueError when they cannot be told apart."""
        self.model: Any = model
        self.processor = processor
        self.anatomy = find_anatomy(model)
        self._image_ids = sorted(image_token_ids(self.model.config))
        self._image_source: str | None = None  # "ids", "pixels" or "none": decided on the first image

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor itself where it is one."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers."""
        return self.anatomy.layers

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the model's first weights."""
        return next(self.model.parameters()).device

    def prepare(
        self,
        prompts: Sequence[str],
        images: Sequence[Image.Image] | None = None,
        answers: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Model inputs, left padded and on the device: one user turn per prompt, with its image.

        The chat template adds the generation prompt; `answers` are appended to it, each followed by
        the end-of-sequence token. Raises ValueError when lengths differ or there is no template.
        """
        inputs = prepare(self.processor, prompts, images, answers)
        known = self.anatomy.input_names()
        weights = next(self.model.parameters())
        return {
            name: value.to(weights) if value.is_floating_point() else value.to(weights.device)
            for name, value in inputs.items()
            if name in known
        }

    def record(self, *, stop: int | None = None, **inputs: Any) -> Run:
        """Run the whole model once, vision tower included and without gradients.

        With `stop` the forward ends at what enters that layer, which is all that training above it
        needs. Raises TypeError for an input that the model does not take.
        """
        if stop is not None:
            check_layer(stop, "stop", 0, self.n_layers)
        return trace.record(self.anatomy, self._on_device(inputs), stop)

    def prefix(self, inputs: Mapping[str, Any], stop: int) -> Float[Tensor, "*batch tokens width"]:
        """Residual stream [batch, tokens, width] entering layer `stop`; nothing above is executed."""
        return self.record(stop=stop, **inputs).resid[stop]

    def replay(
        self,
        run: Run,
        start: int = 0,
        hidden: Float[Tensor, "*batch tokens width"] | None = None,
        edits: Sequence[Edit] = (),
    ) -> Replay:
        """Run decoder and head again, layers `start` and above only, with edits.

        `hidden` [batch, tokens, width] replaces what enters layer `start`. Layers below return their
        recorded outputs. Runs under the caller's gradient mode: gradients reach `hidden`, edit values and
        the weights of the layers that run. Raises IndexError, TypeError or ValueError, naming the
        argument, for what does not fit the run.
        """
        check_layer(start, "start", 0, min(self.n_layers, len(run.resid) - 1))
        expected = run.resid[start].shape
        if hidden is not None and hidden.shape != expected:
            raise ValueError(f"hidden has shape {list(hidden.shape)}, layer {start} takes {list(expected)}")
        check_edits(edits, run.resid[0], run.grid, start, self.n_layers)
        return trace.replay(self.anatomy, run, start, hidden, edits)

    def self_test(self, run: Run) -> None:
        """Raise RuntimeError unless replays, whole and from the middle, give the recorded logits exactly."""
        for start in (0, self.n_layers // 2):
            with torch.no_grad():
                logits = self.replay(run, start=start).logits
            if not torch.equal(logits, run.logits):
                worst = (logits - run.logits).abs().max().item()
                raise RuntimeError(
                    f"replay from layer {start} differs from the recorded logits by {worst:.3g}: "
                    f"{type(self.model).__name__} cannot be driven exactly"
                )

    def image_mask(
        self, inputs: Mapping[str, Any], run: Run | None = None
    ) -> Bool[Tensor, "batch tokens"] | None:
        """Positions that hold image features; None where pixels never occupy positions.

        The placeholder ids that the configuration declares are checked against `pixel_mask` the
        first time an image is seen, and replaced by it where they miss a position.
        """
        inputs = self._on_device(inputs)
        if not pixels(inputs):
            return torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        declared = torch.isin(inputs["input_ids"], torch.tensor(self._image_ids, device=self.device))
        if self._image_source is None:
            found = self.pixel_mask(inputs, run)
            covered = found.shape == declared.shape and not (found & ~declared).any()
            # A connector that gives zeros leaves no trace either, but such a model has no cross-attention.
            crosses = bool(self.anatomy.cross_attentions()) and not found.any()
            self._image_source = "none" if crosses else "ids" if covered else "pixels"
        if self._image_source == "none":
            return None
        return declared if self._image_source == "ids" else self.pixel_mask(inputs, run)

    def pixel_mask(self, inputs: Mapping[str, Any], run: Run | None = None) -> Bool[Tensor, "batch tokens"]:
        """Positions where what enters layer 0 changes with the pixels, found by changing them.

        Takes two forwards that stop at layer 0; `run`, the record of `inputs`, can save one of them.
        """
        return positions.pixel_mask(self.anatomy, self._on_device(inputs), run)

    def _on_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        known = self.anatomy.input_names()
        for name in inputs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f", did you mean {close[0]!r}?" if close else f"; it takes {', '.join(sorted(known))}"
                raise TypeError(f"{type(self.model).__name__} does not take the input {name!r}{hint}")
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
