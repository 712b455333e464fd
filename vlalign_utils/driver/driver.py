"""Driver of a vision-language model: record, replay and edit its decoder, whatever its family."""

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlalign_utils.driver import batched_replay, finite, image_positions, recording
from vlalign_utils.driver.anatomy import find_anatomy, image_token_ids
from vlalign_utils.driver.attention_backend import attention_for
from vlalign_utils.driver.edits import Edit, Knockout, check_edits, check_layer
from vlalign_utils.driver.image_positions import pixels
from vlalign_utils.driver.kv_cache import KVCache, weights_now
from vlalign_utils.driver.recording import Replay, Run

LOG = logging.getLogger("vlalign")
# Tokens that run at once when sets of edits share a batch: a CPU's cache holds few, a GPU needs many.
TOKENS_CPU, TOKENS = 1024, 16384


def _need(edits: Sequence[Edit]) -> Literal["masks", "any"]:
    return "masks" if any(isinstance(edit, Knockout) for edit in edits) else "any"


def _checkpointing(layers: nn.ModuleList) -> bool:
    return any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in layers)


class Driver:
    """Record, replay and edit the decoder of a loaded transformers vision-language model.

    The model is used as it is: its weights, precision and train or eval mode are never changed.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the decoder layers. Raises ValueError when they cannot be told apart."""
        self.model: Any = model
        self.anatomy = find_anatomy(model)
        self._image_ids = sorted(image_token_ids(self.model.config))
        self.image_source: str | None = None  # "ids", "pixels" or "none": decided on the first image
        self._all_show_pixels = True  # whether every declared position changed with the first image's pixels
        self._joint: dict[bool, bool] = {}  # whether edit sets can share a batch: of all tokens; of a suffix

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
        """Device of the model's first weights that are in memory; what is offloaded comes there by itself."""
        return self._weights().device

    def _weights(self) -> Tensor:
        held = (p for p in self.model.parameters() if not p.is_meta)
        return next(held, torch.empty(0, dtype=self.model.dtype))

    def record(self, *, stop: int | None = None, kv_cache: bool = False, **inputs: Any) -> Run:
        """Run the whole model once, vision tower included and without gradients.

        Args:
            stop: layer (0 to n_layers) at whose input the forward ends, which is all that training above it
                needs; None for the whole forward.
            kv_cache: also keep the keys and values of the attention, where the model allows that: `replays`
                then computes only the tokens that an edit can change.
            inputs: keyword arguments of the model's forward, as `prepare` gives them.

        Returns:
            Run with `logits` [batch, tokens, vocabulary] and n_layers + 1 streams `resid`
            [batch, tokens, width]; a stopped one with the stop + 1 streams up to there.

        Raises:
            IndexError, TypeError: for a layer `stop` or an input that the model does not take.
            ValueError: naming the first part at fault, when the model gives NaN or infinity.

        Example:
            >>> from PIL import Image
            >>> from vlalign_utils import load_vlm
            >>> vlm = load_vlm("zoo/llava")
            >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
            >>> tuple(vlm.record(**inputs).logits.shape)
            (1, 43, 215)
            >>> len(vlm.record(stop=3, **inputs).resid)
            4
        """
        if stop is not None:
            check_layer(stop, "stop", 0, self.n_layers)
        placed = self._on_device(inputs)
        run = self._record(placed, stop, kv_cache)
        finite.check_run(self.anatomy, run)
        return run

    def _record(self, placed: dict[str, Any], stop: int | None, kv_cache: bool) -> Run:
        if not kv_cache or not self._joint.get(True, True):
            return recording.record(self.anatomy, placed, stop)
        try:
            return recording.record(self.anatomy, placed, stop, KVCache(weights_now(self.layers)))
        except (ValueError, TypeError, AttributeError, NotImplementedError) as reason:
            run = recording.record(self.anatomy, placed, stop)  # raises again where the inputs are at fault
            self._joint[True] = False
            LOG.info("%s: every token runs in a sweep: %s", type(self.model).__name__, reason)
            return run

    def prefix(self, inputs: Mapping[str, Any], stop: int) -> Float[Tensor, "*batch tokens width"]:
        """Residual stream [batch, tokens, width] entering layer `stop`; nothing above is executed.

        Args:
            inputs: keyword arguments of the model's forward, by name.
            stop: layer, 0 to n_layers; n_layers gives what leaves the last layer.

        Raises:
            IndexError, TypeError, ValueError: as `record` does.

        Example:
            >>> from PIL import Image
            >>> from vlalign_utils import load_vlm
            >>> vlm = load_vlm("zoo/llava")
            >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
            >>> tuple(vlm.prefix(inputs, stop=3).shape)
            (1, 43, 96)
        """
        return self.record(stop=stop, **inputs).resid[stop]

    def replay(
        self,
        run: Run,
        start: int = 0,
        hidden: Float[Tensor, "*batch tokens width"] | None = None,
        edits: Sequence[Edit] = (),
    ) -> Replay:
        """Run decoder and head again, layers `start` and above only, with edits.

        Layers below return their recorded outputs. Runs under the caller's gradient mode: gradients reach
        `hidden`, edit values and the weights of the layers that run. Without edits the logits are those of
        the run, to the last bit.

        Args:
            run: record of this model.
            start: first layer that runs, 0 to n_layers; n_layers runs the final norm and unembedding only.
            hidden: stream [batch, tokens, width] that replaces what enters layer `start`.
            edits: edits of layers `start` and above, applied in this order.

        Returns:
            Replay with `logits` [batch, tokens, vocabulary], `resid`, and `hit`, layers with attention cut.

        Raises:
            IndexError, TypeError, ValueError: naming the argument, for what does not fit the run.

        Example:
            >>> from PIL import Image
            >>> from vlalign_utils import Patch, load_vlm
            >>> vlm = load_vlm("zoo/llava")
            >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
            >>> run = vlm.record(**inputs)
            >>> image = vlm.image_mask(inputs, run)
            >>> ablated = vlm.replay(run, start=2, edits=[Patch(2, image, run.resid[2][image].mean(dim=0))])
            >>> bool((ablated.logits == run.logits).all())
            False
        """
        self._check_run(run)
        check_layer(start, "start", 0, min(self.n_layers, len(run.resid) - 1))
        expected = run.resid[start].shape
        if hidden is not None and hidden.shape != expected:
            raise ValueError(f"hidden has shape {list(hidden.shape)}, layer {start} takes {list(expected)}")
        check_edits(edits, run.resid[0], run.grid, start, self.layers)
        if _need(edits) == "masks" and torch.is_grad_enabled() and _checkpointing(self.layers):
            raise ValueError(
                "Knockout cannot be trained through with gradient checkpointing, which runs the layers again "
                "without it: call model.gradient_checkpointing_disable()"
            )
        with attention_for(self, _need(edits)):
            return recording.replay(self.anatomy, run, start, hidden, edits)

    def replays(
        self, run: Run, sets: Iterable[Sequence[Edit]], keep: int | None = None, budget: int | None = None
    ) -> Iterator[tuple[int, Float[Tensor, "batch kept vocabulary"]]]:
        """Replay a run once for each set of edits, and yield the set's number with its logits as they come.

        Sets share batches, each from its lowest edited layer and, for a run recorded with `kv_cache` and
        given `keep`, from its first edited token. Where this model or run does not allow that, they run one
        by one: the result is the same, up to rounding where sets share a batch.

        Args:
            run: record of this model.
            sets: edit sets, each a list of edits of one replay.
            keep: number of last tokens whose logits are wanted, None for all.
            budget: tokens that run at once, None for what suits the device.

        Returns:
            Iterator of pairs: number of the set, and its logits [batch, keep or tokens, vocabulary].

        Raises:
            IndexError, TypeError, ValueError: as `replay` does, before anything runs; ValueError for a `keep`
                outside 1..tokens, and for a run that kept the logits of some tokens only.

        Example:
            >>> from PIL import Image
            >>> from vlalign_utils import Patch, load_vlm
            >>> vlm = load_vlm("zoo/llava")
            >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
            >>> run = vlm.record(kv_cache=True, **inputs)
            >>> image = vlm.image_mask(inputs, run)
            >>> sets = [[Patch(k, image, run.resid[k] * 0)] for k in range(vlm.n_layers)]
            >>> logits = dict(vlm.replays(run, sets, keep=1))
            >>> len(logits), tuple(logits[0].shape)
            (8, (1, 1, 215))
        """
        sets = list(sets)
        self._check_run(run)
        for edits in sets:
            check_edits(edits, run.resid[0], run.grid, 0, self.layers)
        if keep is not None and not 1 <= keep <= run.grid[1]:
            raise ValueError(f"keep is {keep}, expected 1..{run.grid[1]} tokens, or None for all")
        if run.logits.shape[1] != run.grid[1]:
            raise ValueError("this run kept the logits of some tokens only: record it without logits_to_keep")
        if run.kv_cache is not None and run.kv_cache.made_by != weights_now(self.layers):
            run = replace(run, kv_cache=None)  # a token's keys are those of weights that have changed since
        if budget is None:
            budget = TOKENS_CPU if self.device.type == "cpu" else TOKENS
        parts = [batched_replay.locate(i, edits, run, self.n_layers, keep) for i, edits in enumerate(sets)]
        groups = batched_replay.plan(self.anatomy, run, parts, budget)
        return (done for group, apart in groups for done in self._replay_group(run, group, apart, keep))

    def _check_run(self, run: Run) -> None:
        if run.root is not self.model:
            raise ValueError("this run was recorded by another model: record the inputs with this one")
        if run.versions != [stream._version for stream in run.resid]:
            raise ValueError("a residual stream of this run was changed in place: change a clone of it")

    def _replay_group(
        self, run: Run, group: Sequence[batched_replay.EditSet], apart: bool, keep: int | None
    ) -> list[tuple[int, Tensor]]:
        with attention_for(self, _need([edit for one in group for edit in one.edits])):
            if apart and self.runs_jointly(run, group[0].cut):
                try:
                    return batched_replay.replay_together(self.anatomy, run, group, keep)
                except batched_replay.NotBatchable as reason:
                    LOG.info("%s: sets of edits run one by one: %s", type(self.model).__name__, reason)
            return [(one.index, batched_replay.replay_alone(self.anatomy, run, one, keep)) for one in group]

    def runs_jointly(self, run: Run, cut: int) -> bool:
        """Try, once and on `run`, whether edit sets of the tokens from `cut` on can share a batch."""
        if (cut > 0) not in self._joint:
            self._joint[cut > 0] = batched_replay.batching_is_exact(self.anatomy, run, cut)
            if not self._joint[cut > 0]:
                what = "a suffix of the tokens" if cut else "several sets of edits"
                LOG.info("%s: %s cannot run by itself; falling back", type(self.model).__name__, what)
        return self._joint[cut > 0]

    def self_test(self, run: Run) -> None:
        """Raise RuntimeError unless replays, whole and from the middle, give the recorded logits exactly.

        Raises ValueError, naming the first part at fault, when the logits are no numbers.
        """
        finite.check_run(self.anatomy, run)
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
        """Positions that hold image features.

        The placeholder ids that the configuration declares are checked against `pixel_mask` the
        first time an image is seen, and replaced by it where they miss a position.

        Args:
            inputs: keyword arguments of the model's forward, by name.
            run: record of these inputs, which can save a forward up to layer 0.

        Returns:
            Boolean [batch, tokens], all False without pixels; None for a model in which pixels never occupy
            positions (cross-attention).

        Raises:
            TypeError: for an input that the model does not take.

        Example:
            >>> from PIL import Image
            >>> from vlalign_utils import load_vlm
            >>> vlm = load_vlm("zoo/llava")
            >>> inputs = vlm.prepare(["What is this?"], images=[Image.new("RGB", (48, 48), "red")])
            >>> image = vlm.image_mask(inputs)
            >>> tuple(image.shape), int(image.sum())
            ((1, 43), 36)
        """
        inputs = self._on_device(inputs)
        # An encoder-decoder's own tokens; a model that takes no ids at all declares no positions by them.
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        if ids is None:
            embeds = inputs.get("decoder_inputs_embeds", inputs.get("inputs_embeds"))
            grid = (0, 0) if embeds is None else embeds.shape[:2]
            ids = torch.full(grid, -1, device=self.device)
        if not pixels(inputs):
            return torch.zeros_like(ids, dtype=torch.bool)
        declared = torch.isin(ids, torch.tensor(self._image_ids, device=self.device))
        if self.image_source is None:
            found = self.pixel_mask(inputs, run)
            covered = found.shape == declared.shape and not (found & ~declared).any()
            # A connector that gives zeros leaves no trace either; but then pixels change nothing at all.
            if not found.any() and not self._sees_pixels(inputs):
                return declared  # these pixels decide nothing: the next ones may
            self._all_show_pixels = torch.equal(found, declared)
            self.image_source = "none" if not found.any() else "ids" if covered else "pixels"
        if self.image_source == "none":
            return None
        # Embeddings given in place of ids show no placeholder.
        by_ids = self.image_source == "ids" and bool((ids >= 0).any())
        return declared if by_ids else self.pixel_mask(inputs, run)

    def pixel_tokens(
        self, inputs: Mapping[str, Any], run: Run | None = None
    ) -> Bool[Tensor, "batch tokens"] | None:
        """Those positions of `image_mask` whose input to layer 0 depends on the pixels.

        Placeholders may also hold learned row ends (LLaVA-OneVision, LLaVA-NeXT), the same for every image.
        Costs two forwards that stop at layer 0 in such a model, nothing in others.
        """
        image = self.image_mask(inputs, run)
        if image is None or not image.any() or self._all_show_pixels:
            return image
        return image & self.pixel_mask(inputs, run)

    @torch.no_grad()
    def _sees_pixels(self, inputs: dict[str, Any]) -> bool:
        changed = inputs | image_positions.other_pixels(inputs)
        logits = [self.model(**one, use_cache=False).logits for one in (inputs, changed)]
        return not torch.equal(*logits)

    def pixel_mask(self, inputs: Mapping[str, Any], run: Run | None = None) -> Bool[Tensor, "batch tokens"]:
        """Positions where what enters layer 0 changes with the pixels, found by changing them.

        Takes two forwards that stop at layer 0; `run`, the record of `inputs`, can save one of them.
        """
        return image_positions.pixel_mask(self.anatomy, self._on_device(inputs), run)

    def _on_device(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        known = self.anatomy.input_names()
        for name in inputs:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f", did you mean {close[0]!r}?" if close else f"; it takes {', '.join(sorted(known))}"
                raise TypeError(f"{type(self.model).__name__} does not take the input {name!r}{hint}")
        return {k: v.to(self.device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
