"""The stages of a chain, each a training run whose end is a Hugging Face folder."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vlalign_utils.data.documents import (
    IGNORE,
    Batch,
    caption_document,
    collate,
    digit_document,
    instruction_document,
    text_batches,
    text_document,
)
from vlalign_utils.data.render import SIDE
from vlalign_utils.data.world import scenes
from vlalign_utils.zoo.loop import History, fit
from vlalign_utils.zoo.pictures import MEAN, STD, Pictures
from vlalign_utils.zoo.recipe import Recipe
from vlalign_utils.zoo.vision import contrastive_loss, vision_batches

DIGIT_SHARE = {"aligned": 0.25, "tuned": 0.1}  # of the picture rows; the connector alone learns most of it
PREVIOUS = (1, 2)  # tokens back that a head each looks, in as many layers, at first: a word is two tokens
SHARP = 6  # fastest rotations of RoPE that these heads use
TEXT_SHARE = 0.15  # of the rows of instruction tuning: what keeps the language model's text


def train_vision(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, pictures: Pictures, checkpoint: Path
) -> tuple[CLIPModel, History]:
    """Train the vision tower contrastively, with a text tower that is not kept."""
    torch.manual_seed(recipe.seed)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vision = {k: v for k, v in recipe.vision_config.items() if k != "model_type"}
    width = recipe.vision_config["projection_dim"]
    model = CLIPModel(
        CLIPConfig(vision_config=vision, text_config={**recipe.contrast_config, **ids}, projection_dim=width)
    )
    schedule, patch = recipe.stages.vision, recipe.vision_config["patch_size"]
    history = fit(
        model,
        schedule,
        lambda first: vision_batches(
            pictures, patch, schedule.batch_size, schedule.steps, recipe.seed, first
        ),
        lambda batch: contrastive_loss(model, tokenizer, batch),
        checkpoint,
        "vision",
    )
    return model, history


def train_base(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, checkpoint: Path
) -> tuple[PreTrainedModel, History]:
    """Train the language model on text alone."""
    torch.manual_seed(recipe.seed)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**recipe.text_config, **ids))
    initialise(model, recipe.embedding_std)
    schedule = recipe.stages.base
    history = fit(
        model,
        schedule,
        lambda first: text_batches(tokenizer, schedule.batch_size, schedule.steps, recipe.seed, first),
        lambda batch: answer_loss(model, batch),
        checkpoint,
        "base",
    )
    return model, history


@torch.no_grad()
def initialise(model: PreTrainedModel, embedding_std: float) -> None:
    """Prepare what binding is learnt from: words that stand out, and heads that look at the tokens before.

    Embeddings are drawn wider, and what each layer adds is scaled by 1 / sqrt(2 layers) (Radford 2019). In
    the first layers a head for each distance in `PREVIOUS` begins by looking just that far back: without
    them the step to induction takes several times as long (cf. Trockman & Kolter 2023).
    """
    layers = model.config.num_hidden_layers
    for name, weight in model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            nn.init.normal_(weight, std=embedding_std)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.mul_((2 * layers) ** -0.5)
        elif name.endswith("_proj.bias"):
            weight.zero_()
    width = model.config.head_dim
    pairs = width // 2
    turns = model.config.rope_parameters["rope_theta"] ** (-torch.arange(SHARP) / pairs)
    # With RoPE, constant queries and keys score sum(cos(turn * (distance - offset))): highest at the offset.
    size = (3.0 * width**0.5) ** 0.5
    for layer in model.model.layers[: len(PREVIOUS)]:
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        for head, offset in enumerate(PREVIOUS):
            first = head * width
            for projection in (query, key):
                projection.weight[first : first + width] *= 0.1
            key.bias[first : first + SHARP] = size
            query.bias[first : first + SHARP] = size * torch.cos(turns * offset)
            second = first + pairs  # rotated together with `first`
            query.bias[second : second + SHARP] = -size * torch.sin(turns * offset)


def answer_loss(
    model: nn.Module, batch: Batch, pixels: Float[Tensor, "pictures 3 height width"] | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answers' tokens."""
    given = {} if pixels is None else {"pixel_values": pixels}
    logits = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **given
    ).logits
    target = batch.labels[:, 1:]
    keep = target != IGNORE
    return F.cross_entropy(logits[:, :-1][keep], target[keep])


def assemble(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, vision: CLIPModel, language: PreTrainedModel
) -> LlavaForConditionalGeneration:
    """Put a trained vision tower and language model into LLaVA's shell; the connector is untrained."""
    torch.manual_seed(recipe.seed)
    config = LlavaConfig(
        vision_config=recipe.vision_config,
        text_config=language.config.to_dict(),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=(SIDE // recipe.vision_config["patch_size"]) ** 2,
        # The last layer's patches: the contrastive stage trains them, not only the class token.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=recipe.text_config["tie_word_embeddings"],
    )
    model = LlavaForConditionalGeneration(config)
    # The connector's default scale (0.02) would leave its outputs far below the word embeddings'.
    for layer in (m for m in model.model.multi_modal_projector.modules() if isinstance(m, nn.Linear)):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    model.model.vision_tower.load_state_dict(vision.vision_model.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config.update(
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def build_processor(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
    """The processor saved with every stage: 48 x 48 pixels, and the tokenizer's chat template."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=recipe.vision_config["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the class token, which the strategy drops again
        chat_template=tokenizer.chat_template,
    )


def train_on_pictures(
    stage: str,
    model: LlavaForConditionalGeneration,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    pictures: Pictures,
    checkpoint: Path,
) -> History:
    """Train stage `aligned` (connector, on descriptions) or `tuned` (language model too, on questions)."""
    parts = [model.model.multi_modal_projector]
    if stage == "tuned":
        parts += [model.model.language_model, model.lm_head]
    model.requires_grad_(False)
    for part in parts:
        part.requires_grad_(True)
    schedule = getattr(recipe.stages, stage)
    return fit(
        model,
        schedule,
        lambda first: picture_batches(
            stage,
            pictures,
            tokenizer,
            schedule.batch_size,
            schedule.steps,
            recipe.seed,
            first,
            model.config.image_seq_length,
        ),
        lambda pair: answer_loss(model, *pair),
        checkpoint,
        stage,
    )


def picture_batches(
    stage: str,
    pictures: Pictures,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    steps: int,
    seed: int,
    first: int,
    image_tokens: int,
) -> Iterator[tuple[Batch, Float[Tensor, "pictures 3 height width"]]]:
    """Batches `first` to `steps` of chats about pictures; `tuned` mixes in chats about text."""
    make = instruction_document if stage == "tuned" else caption_document
    n_text = round(TEXT_SHARE * batch_size) if stage == "tuned" else 0
    n_digits = round(DIGIT_SHARE[stage] * (batch_size - n_text))
    n_scenes = batch_size - n_text - n_digits
    for step in range(first, steps):
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(pictures.scenes), size=n_scenes).tolist()
        alone = rng.integers(len(pictures.digits), size=n_digits).tolist()
        documents = [make(pictures.scenes[row], rng) for row in rows]
        documents += [digit_document(pictures.digits[row], rng) for row in alone]
        written = scenes(n_text, int(rng.integers(2**31)), "train")
        documents += [text_document(scene, rng) for scene in written]
        pixels = pictures.normalised([*rows, *(len(pictures.scenes) + row for row in alone)])
        yield collate(documents, tokenizer, image_tokens), pixels
