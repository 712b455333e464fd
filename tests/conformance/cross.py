"""Tiny models that bring pixels in another way: both-ways attention, discrete codes, cross-attention."""

import tiny_models
import torch
import transformers
from family import UNBUILT, family
from tiny_models import IMAGE, PAD, TEXT, VISION, Built, Inputs, image_noise, tokens

family("gemma3", "bidirectional")(tiny_models.gemma3)
family("mllama", "cross")(tiny_models.mllama)
family("idefics", "cross")(tiny_models.idefics)


def _image_first(n_image: int) -> Inputs:
    """As `tokens`, with the image at the beginning of the prompt, after the padding."""
    inputs = tokens(0)
    inputs["input_ids"][0, 2 : 2 + n_image] = IMAGE
    inputs["input_ids"][1, :n_image] = IMAGE
    return inputs


@family("paligemma", "bidirectional")
def paligemma() -> Built:
    """Image and prompt attend both ways, only the answer is causal."""
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **VISION},
        text_config={"model_type": "gemma", **TEXT},
        image_token_index=IMAGE,
        vocab_size=64,
        hidden_size=32,
        projection_dim=32,
    )
    inputs = {**_image_first(4), "pixel_values": image_noise(2, 3, 16, 16)}
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    inputs["token_type_ids"][:, -3:] = 1  # the answer
    return config, transformers.PaliGemmaForConditionalGeneration, inputs


@family("shieldgemma2", "bidirectional")
def shieldgemma2() -> Built:
    """Gemma 3 under a config of its own; the class that reduces its logits to yes and no only wraps it."""
    gemma, model_class, inputs = tiny_models.gemma3()
    config = transformers.ShieldGemma2Config(
        vision_config=gemma.vision_config,
        text_config=gemma.text_config,
        image_token_index=IMAGE,
        boi_token_index=62,
        eoi_token_index=61,
        mm_tokens_per_image=4,
    )
    return config, model_class, inputs


@family("git", "bidirectional")
def git() -> Built:
    """Image features, no placeholders, are put before the text; they attend both ways, the text is causal."""
    config = transformers.GitConfig(
        vision_config=VISION,
        **{k: TEXT[k] for k in TEXT if k not in ("num_key_value_heads", "head_dim")},
    )
    return config, transformers.GitForCausalLM, {**tokens(0), "pixel_values": image_noise(2, 3, 16, 16)}


# Image codes stand behind the text vocabulary: with fewer of them, other pixels may give the same codes.
CODES = range(64, 96)


@family("chameleon", "early")
def chameleon() -> Built:
    """A VQ-VAE turns the image into codes of the text vocabulary, whose logits are forbidden."""
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    names = {f"IMGIMG{str(i).translate(letters)}Z": code for i, code in enumerate(CODES)}
    config = transformers.ChameleonConfig(
        **{k: TEXT[k] for k in TEXT if k not in ("head_dim", "vocab_size")},
        vocab_size=CODES.stop,
        vocabulary_map={"<image>": IMAGE, **names},
        vq_config={
            "embed_dim": 4,
            "num_embeddings": len(CODES),
            "latent_channels": 4,
            "resolution": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 4, 4)}
    return config, transformers.ChameleonForConditionalGeneration, inputs


@family("emu3", "early")
def emu3() -> Built:
    """A VQ-VAE turns the image into codes; one that never changes ends each row of them."""
    names = {f"<|visual token {i:06d}|>": code for i, code in enumerate(CODES)}
    config = transformers.Emu3Config(
        text_config={**{k: TEXT[k] for k in TEXT if k != "head_dim"}, "vocab_size": CODES.stop},
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 51, **names},
        vq_config={
            "codebook_size": len(CODES),
            "embed_dim": 8,
            "latent_channels": 8,
            "temporal_downsample_factor": 2,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [1],
            "hidden_size": 32,
        },
    )
    inputs = {**tokens(6), "pixel_values": image_noise(2, 3, 4, 4)}
    inputs["image_sizes"] = torch.tensor([[4, 4]] * 2)
    return config, transformers.Emu3ForConditionalGeneration, inputs


@family("fuyu", "early")
def fuyu() -> Built:
    """Raw patches are projected straight to the width of the decoder: there is no vision tower."""
    config = transformers.FuyuConfig(
        text_config={
            "model_type": "persimmon",
            **{k: TEXT[k] for k in TEXT if k not in ("num_key_value_heads", "head_dim")},
        },
        image_size=16,
        patch_size=8,
        image_token_id=IMAGE,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 4, 8 * 8 * 3)}
    return config, transformers.FuyuForCausalLM, inputs


@family("cosmos3_edge", "decoder")
def cosmos3_edge() -> Built:
    """Image tokens take rotary positions of three axes; patches are merged in fours."""
    config = transformers.Cosmos3EdgeConfig(
        vision_config={**VISION, "patch_size": 4, "num_patches": 16},
        text_config={
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=62,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    _, _, inputs = tiny_models.qwen3_vl()
    inputs["pixel_values"] = image_noise(32, 4 * 4 * 3)
    return config, transformers.Cosmos3EdgeForConditionalGeneration, inputs


@family("cosmos3_omni", "deepstack")
def cosmos3_omni() -> Built:
    """Qwen 3 VL inside: vision features are added to image tokens between the first layers."""
    qwen, _, inputs = tiny_models.qwen3_vl()
    config = transformers.Cosmos3OmniConfig(
        vision_config=qwen.vision_config,
        text_config=qwen.text_config,
        image_token_id=IMAGE,
        video_token_id=62,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    return config, transformers.Cosmos3OmniForConditionalGeneration, inputs


@family("blip", "cross")
def blip() -> Built:
    """Every layer has cross-attention to the image, whose attention modules only run eager."""
    config = transformers.BlipConfig(
        vision_config=VISION,
        text_config={
            **{k: TEXT[k] for k in TEXT if k not in ("num_key_value_heads", "head_dim")},
            "sep_token_id": 2,
        },
    )
    inputs = {**tokens(0), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.BlipForConditionalGeneration, inputs


def _answer() -> Inputs:
    """What the decoder of an encoder-decoder is given: never padded, and not as long as the prompt."""
    return {"decoder_input_ids": tokens(0, n=16)["input_ids"].clamp(min=1)}


@family("florence2", "cross")
def florence2() -> Built:
    """Image features are placeholders of the encoder's prompt; the decoder sees them by cross-attention."""
    config = transformers.Florence2Config(
        vision_config={
            "depths": [1, 1],
            "patch_size": [7, 3],
            "patch_stride": [4, 2],
            "patch_padding": [3, 1],
            "patch_prenorm": [False, True],
            "embed_dim": [8, 16],
            "num_heads": [2, 2],
            "num_groups": [2, 2],
            "window_size": 2,
            "projection_dim": 32,
            "max_temporal_embeddings": 4,
            "max_position_embeddings": 4,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": 64,
            "d_model": 32,
            "encoder_layers": 4,
            "decoder_layers": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": PAD,
        },
        image_token_id=IMAGE,
    )
    inputs = {**_image_first(5), **_answer(), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.Florence2ForConditionalGeneration, inputs


@family("udop", "cross")
def udop() -> Built:
    """The encoder adds each patch to the word printed on it; layers share the first one's position bias."""
    config = transformers.UdopConfig(
        vocab_size=64,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=4,
        num_heads=4,
        max_2d_position_embeddings=16,
        image_size=16,
        patch_size=8,
    )
    inputs = {**tokens(0), **_answer(), "pixel_values": image_noise(2, 3, 16, 16)}
    corners = torch.randint(0, 500, (2, 14, 2), generator=torch.Generator().manual_seed(4))
    inputs["bbox"] = torch.cat([corners, corners + 100], dim=-1) * inputs["attention_mask"][..., None]
    return config, transformers.UdopForConditionalGeneration, inputs


@family("pix2struct", "cross")
def pix2struct() -> Built:
    """Patches carry their row and column as first values; the decoder's layers share a position bias."""
    config = transformers.Pix2StructConfig(
        vision_config={
            "hidden_size": 32,
            "patch_embed_hidden_size": 4 * 4 * 3,
            "d_ff": 32,
            "d_kv": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "seq_len": 8,
        },
        text_config={
            "vocab_size": 64,
            "hidden_size": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 4,
            "num_heads": 4,
        },
    )
    places = torch.tensor([[y, x] for y in (1, 2) for x in (1, 2)]).expand(2, 4, 2)
    inputs = {**_answer(), "flattened_patches": torch.cat([places, image_noise(2, 4, 48)], dim=-1)}
    inputs["attention_mask"] = torch.ones(2, 4)  # of the patches
    return config, transformers.Pix2StructForConditionalGeneration, inputs


@family("vision-encoder-decoder", "cross")
def vision_encoder_decoder() -> Built:
    """Any vision encoder and any decoder with cross-attention: here those of TrOCR."""
    config = transformers.VisionEncoderDecoderConfig(
        encoder={"model_type": "vit", **VISION},
        decoder={
            "model_type": "trocr",
            "vocab_size": 64,
            "d_model": 32,
            "cross_attention_hidden_size": 16,
            "decoder_layers": 4,
            "decoder_ffn_dim": 64,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": PAD,
            "is_decoder": True,
            "add_cross_attention": True,
        },
    )
    inputs = {**_answer(), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.VisionEncoderDecoderModel, inputs


@family("t5gemma2", "cross")
def t5gemma2() -> Built:
    """One softmax over the tokens so far and over the encoder's, which hold the image; one window slides."""
    text = {
        **TEXT,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 8,
    }
    config = transformers.T5Gemma2Config(
        encoder={
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "text_config": text,
            "mm_tokens_per_image": 4,
            "boi_token_index": 62,
            "eoi_token_index": 61,
            "image_token_index": IMAGE,
        },
        decoder=text,
        image_token_index=IMAGE,
    )
    inputs = {**tokens(4), **_answer(), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.T5Gemma2ForConditionalGeneration, inputs


@family("pp_formulanet", "cross")
def pp_formulanet() -> Built:
    """A BART decoder; its config also counts the layers of a text encoder that is not there."""
    config = transformers.PPFormulaNetConfig(
        vision_config={
            **{k: VISION[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
            "image_size": 32,
            "patch_size": 4,
            "output_channels": 16,
            "window_size": 2,
            "global_attn_indexes": [1],
            "mlp_dim": 32,
            "post_conv_in_channels": 16,
            "post_conv_mid_channels": 16,
            "post_conv_out_channels": 16,
            "decoder_hidden_size": 32,
        },
        text_config={
            "vocab_size": 64,
            "d_model": 32,
            "decoder_layers": 4,
            "decoder_ffn_dim": 64,
            "decoder_attention_heads": 4,
            "max_position_embeddings": 128,
            "pad_token_id": PAD,
        },
    )
    inputs = {**_answer(), "pixel_values": image_noise(2, 3, 32, 32)}
    return config, transformers.PPFormulaNetForConditionalGeneration, inputs


UNBUILT["pi0"] = "gives robot actions, no token logits, and its config names no text decoder."
UNBUILT["evolla"] = "reads proteins as token ids: no image goes in."
