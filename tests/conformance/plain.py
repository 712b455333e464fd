"""Families that put image features at token positions of a plain decoder, or come from one that does."""

from typing import Any

import tiny_models
import torch
import transformers
from family import family
from tiny_models import IMAGE, PAD, TEXT, VISION, Built, Inputs, image_noise, tokens

FINE = {**VISION, "patch_size": 4}  # 4 x 4 patches, for connectors that merge 2 x 2 of them
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}


def pictures(n_image: int = 4, n: int = 14) -> Inputs:
    """One picture of 16 x 16 pixels per row, which takes `n_image` positions."""
    return {**tokens(n_image, n), "pixel_values": image_noise(2, 3, 16, 16)}


def tiles(n_tiles: int, n_image: int = 4, n: int = 14) -> Inputs:
    """`n_tiles` pictures of 16 x 16 pixels per row, which take `n_image` positions together."""
    return {**tokens(n_image, n), "pixel_values": image_noise(2, n_tiles, 3, 16, 16)}


def clip(**changes: Any) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **VISION, **changes}


def siglip(**changes: Any) -> dict[str, Any]:
    return {"model_type": "siglip_vision_model", "vision_use_head": False, **VISION, **changes}


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **changes}


family("llava", "decoder")(tiny_models.llava)


@family("llava_next", "decoder")
def llava_next() -> Built:
    """A small picture and its tiles, whose rows end in a newline embedding: 4 + 2 x (2 + 1) positions."""
    config = transformers.LlavaNextConfig(
        vision_config=clip(),
        text_config=text("mistral", sliding_window=None),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 16]],
        image_seq_length=4,
    )
    inputs = {**tiles(2, 10, 20), "image_sizes": torch.tensor([[16, 16]] * 2)}
    return config, transformers.LlavaNextForConditionalGeneration, inputs


@family("llava_next_video", "decoder")
def llava_next_video() -> Built:
    """As LLaVA-NeXT, with another placeholder for video frames."""
    config = transformers.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=text("llama"),
        image_token_index=IMAGE,
        video_token_index=62,
        image_grid_pinpoints=[[16, 16]],
        image_seq_length=4,
    )
    inputs = {**tiles(2, 10, 20), "image_sizes": torch.tensor([[16, 16]] * 2)}
    return config, transformers.LlavaNextVideoForConditionalGeneration, inputs


@family("llava_onevision", "decoder")
def llava_onevision() -> Built:
    """As LLaVA-NeXT, from a vision tower without class token: tiles and newline embeddings."""
    config = transformers.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        video_token_index=62,
        image_grid_pinpoints=[[16, 16]],
    )
    inputs = {**tiles(2, 10, 20), "image_sizes": torch.tensor([[16, 16]] * 2)}
    inputs["batch_num_images"] = torch.ones(2, dtype=torch.long)
    return config, transformers.LlavaOnevisionForConditionalGeneration, inputs


@family("vipllava", "decoder")
def vipllava() -> Built:
    """The features of several vision layers side by side, from coarse to fine."""
    config = transformers.VipLlavaConfig(
        vision_config=clip(),
        text_config=text("llama"),
        image_token_index=IMAGE,
        vision_feature_layer=[-1, -2, 0],
        image_seq_length=4,
    )
    return config, transformers.VipLlavaForConditionalGeneration, pictures()


@family("video_llava", "decoder")
def video_llava() -> Built:
    """Two vision towers of the same kind, one for pictures and one for frames."""
    config = transformers.VideoLlavaConfig(
        vision_config=clip(),
        text_config=text("llama"),
        image_token_index=IMAGE,
        video_token_index=62,
        image_seq_length=4,
    )
    return config, transformers.VideoLlavaForConditionalGeneration, pictures()


@family("internvl", "decoder")
def internvl() -> Built:
    """Each 2 x 2 patches are shuffled into the width of one feature."""
    config = transformers.InternVLConfig(
        vision_config=FINE, text_config=text("qwen2"), image_token_id=IMAGE, image_seq_length=4
    )
    return config, transformers.InternVLForConditionalGeneration, pictures()


@family("qianfan_ocr", "decoder")
def qianfan_ocr() -> Built:
    """As InternVL, around Qwen3."""
    config = transformers.QianfanOCRConfig(
        vision_config=FINE, text_config=text("qwen3"), image_token_id=IMAGE, image_seq_length=4
    )
    return config, transformers.QianfanOCRForConditionalGeneration, pictures()


def with_pixel_mask(inputs: Inputs) -> Inputs:
    """Say of every pixel that it belongs to the picture and not to its padding."""
    pixels = inputs["pixel_values"]
    return {**inputs, "pixel_attention_mask": torch.ones_like(pixels[:, :, 0], dtype=torch.long)}


@family("idefics2", "decoder")
def idefics2() -> Built:
    """A perceiver turns the patches of a picture into a fixed number of features by cross-attention."""
    config = transformers.Idefics2Config(
        vision_config=dict(VISION),
        text_config=text("mistral", sliding_window=None),
        perceiver_config={
            "hidden_size": 32,
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        },
        image_token_id=IMAGE,
    )
    return config, transformers.Idefics2ForConditionalGeneration, with_pixel_mask(tiles(1, 3))


@family("idefics3", "decoder")
def idefics3() -> Built:
    """Pixel shuffle and one linear map; pictures that are all zero are taken for padding."""
    config = transformers.Idefics3Config(vision_config=FINE, text_config=text("llama"), image_token_id=IMAGE)
    return config, transformers.Idefics3ForConditionalGeneration, with_pixel_mask(tiles(1))


@family("smolvlm", "decoder")
def smolvlm() -> Built:
    """As Idefics3; when every picture is all zero, the first still counts as one."""
    config = transformers.SmolVLMConfig(vision_config=FINE, text_config=text("llama"), image_token_id=IMAGE)
    return config, transformers.SmolVLMForConditionalGeneration, with_pixel_mask(tiles(1))


@family("aya_vision", "decoder")
def aya_vision() -> Built:
    """Attention and MLP side by side; sliding layers with rotary positions, full ones without any."""
    config = transformers.AyaVisionConfig(
        vision_config=siglip(patch_size=4), text_config=text("cohere2", **SLIDING), image_token_index=IMAGE
    )
    return config, transformers.AyaVisionForConditionalGeneration, pictures()


@family("cohere2_vision", "decoder")
def cohere2_vision() -> Built:
    """As Aya Vision, with another connector."""
    config = transformers.Cohere2VisionConfig(
        vision_config=siglip(patch_size=4),
        text_config=text("cohere2", **SLIDING),
        image_token_id=IMAGE,
        alignment_intermediate_size=32,
    )
    return config, transformers.Cohere2VisionForConditionalGeneration, pictures()


@family("cohere_compass", "deepstack")
def cohere_compass() -> Built:
    """DeepStack into sliding and full layers in turn; rotary positions in the sliding ones only."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = transformers.CohereCompassConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "depth": 3,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 16,
        },
        text_config={
            **{k: TEXT[k] for k in TEXT if k != "head_dim"},
            **SLIDING,
            "rope_parameters": {"sliding_attention": rope, "full_attention": None},
        },
        image_token_id=IMAGE,
        video_token_id=62,
        vision_start_token_id=61,
        vision_end_token_id=60,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(32, 96)}
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return config, transformers.CohereCompassForConditionalGeneration, inputs


@family("mistral3", "decoder")
def mistral3() -> Built:
    """All pictures in one vision sequence; in the text a break token ends each row of features."""
    config = transformers.Mistral3Config(
        vision_config={"model_type": "pixtral", **FINE, "head_dim": 8},
        text_config=text("mistral", sliding_window=None),
        image_token_index=IMAGE,
    )
    inputs = {**pictures(6, 16), "image_sizes": torch.tensor([[16, 16]] * 2)}
    inputs["input_ids"][:, 6], inputs["input_ids"][:, 9] = 62, 61
    return config, transformers.Mistral3ForConditionalGeneration, inputs


@family("lighton_ocr", "decoder")
def lighton_ocr() -> Built:
    """As Mistral3 around Qwen3, without break tokens."""
    config = transformers.LightOnOcrConfig(
        vision_config={"model_type": "pixtral", **FINE, "head_dim": 8},
        text_config=text("qwen3"),
        image_token_id=IMAGE,
    )
    inputs = {**pictures(), "image_sizes": torch.tensor([[16, 16]] * 2)}
    return config, transformers.LightOnOcrForConditionalGeneration, inputs


@family("perception_lm", "decoder")
def perception_lm() -> Built:
    """Tiles of a picture, averaged over 2 x 2 patches; CLIP stands in for the tower from timm."""
    config = transformers.PerceptionLMConfig(
        vision_config=clip(patch_size=4, model_args={"embed_dim": 16}),
        text_config=text("llama"),
        projector_pooling_ratio=2,
        image_token_id=IMAGE,
        video_token_id=62,
    )
    return config, transformers.PerceptionLMForConditionalGeneration, tiles(1)


@family("ovis2", "decoder")
def ovis2() -> Built:
    """Features mix the rows of a table of visual words; markers around them are rows of the same table."""
    config = transformers.Ovis2Config(
        vision_config={**FINE, "vocab_size": 24, "hidden_stride": 2, "num_visual_indicator_tokens": 5},
        text_config=text("qwen2"),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[58, 59, 60, 61, 62],
        vocab_size=64,
        hidden_size=32,
    )
    inputs = pictures(7, 16)
    inputs["input_ids"][:, [4, 9, 10]] = torch.tensor([58, 61, 62])
    return config, transformers.Ovis2ForConditionalGeneration, inputs


def sam(**names: str) -> dict[str, Any]:
    """A vision tower whose layers attend within windows or to everything, in turn."""
    return {
        **{k: VISION[k] for k in VISION if k != "intermediate_size"},
        "mlp_dim": 32,
        "output_channels": 4,
        "window_size": 2,
        "global_attn_indexes": [1],
        "image_size": 32,
        **names,
    }


@family("got_ocr2", "decoder")
def got_ocr2() -> Built:
    """Windowed vision attention, then convolutions that halve the feature map twice."""
    config = transformers.GotOcr2Config(
        vision_config={**sam(), "patch_size": 4},
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 32, 32)}
    return config, transformers.GotOcr2ForConditionalGeneration, inputs


@family("pp_chart2table", "decoder")
def pp_chart2table() -> Built:
    """The class of GOT-OCR2 with a configuration of its own."""
    _, model_class, inputs = got_ocr2()
    config = transformers.PPChart2TableConfig(
        vision_config={**sam(), "patch_size": 4},
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return config, model_class, inputs


@family("fast_vlm", "decoder")
def fast_vlm() -> Built:
    """The vision tower gives a map, channels first: SAM stands in for the FastViT from timm."""
    config = transformers.FastVlmConfig(
        vision_config={**sam(model_type="sam_vision_model"), "image_size": 16, "output_channels": 16},
        text_config=text("qwen2"),
        image_token_index=IMAGE,
        image_seq_length=4,
    )
    return config, transformers.FastVlmForConditionalGeneration, pictures()


@family("deepseek_vl", "decoder")
def deepseek_vl() -> Built:
    """SigLIP features through a two-layer aligner."""
    config = transformers.DeepseekVLConfig(
        vision_config=siglip(), text_config=text("llama"), image_token_id=IMAGE
    )
    return config, transformers.DeepseekVLForConditionalGeneration, pictures()


@family("deepseek_vl_hybrid", "decoder")
def deepseek_vl_hybrid() -> Built:
    """Each feature joins a coarse and a fine view of the picture, which come as two inputs."""
    config = transformers.DeepseekVLHybridConfig(
        vision_config=siglip(),
        high_res_vision_config=sam(model_type="sam_vision_model"),
        text_config=text("llama"),
        image_token_id=IMAGE,
    )
    inputs = {**pictures(), "high_res_pixel_values": image_noise(2, 3, 32, 32)}
    return config, transformers.DeepseekVLHybridForConditionalGeneration, inputs


@family("janus", "decoder")
def janus() -> Built:
    """Features to understand a picture; the codes with which it draws one take no part."""
    config = transformers.JanusConfig(
        vision_config={
            **{k: VISION[k] for k in VISION if k != "intermediate_size"},
            "mlp_ratio": 2.0,
            "projection_dim": 32,
            "num_image_tokens": 4,
        },
        vq_config={
            "embed_dim": 4,
            "num_embeddings": 16,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        text_config=text("llama"),
        image_token_id=IMAGE,
    )
    return config, transformers.JanusForConditionalGeneration, pictures()


@family("aria", "moe")
def aria() -> Built:
    """Learned queries read the patches by cross-attention; two of four experts besides a shared one."""
    config = transformers.AriaConfig(
        vision_config={"model_type": "idefics3_vision", **VISION},
        text_config={
            **TEXT,
            "intermediate_size": 32,
            "moe_num_experts": 4,
            "moe_topk": 2,
            "moe_num_shared_experts": 1,
        },
        projector_patch_to_query_dict={4: 3},
        image_token_index=IMAGE,
    )
    inputs = {**pictures(3), "pixel_mask": torch.ones(2, 16, 16, dtype=torch.bool)}
    return config, transformers.AriaForConditionalGeneration, inputs


@family("granite_docling", "deepstack")
def granite_docling() -> Built:
    """DeepStack, and fixed factors on embeddings, residuals, attention and logits."""
    config = transformers.GraniteDoclingConfig(
        vision_config={
            **VISION,
            "patch_size": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1],
            "scale_factor": 4,
        },
        text_config={k: TEXT[k] for k in TEXT if k != "head_dim"},
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    inputs = {**tiles(1), "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool)}
    return config, transformers.GraniteDoclingForConditionalGeneration, inputs


@family("minicpm_ocr", "hybrid")
def minicpm_ocr() -> Built:
    """Gated delta-net layers and attention layers in turn; all patches of a batch come in one sequence."""
    config = transformers.MiniCPMOcrConfig(
        vision_config=FINE,
        text_config=text(
            "qwen3_5_text",
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_conv_kernel_dim=2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
                "mrope_section": [2, 1, 1],
            },
        ),
        image_token_id=IMAGE,
        video_token_id=62,
        insert_layer_id=0,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(1, 3, 4, 4 * 32)}
    inputs["target_sizes"] = torch.tensor([[4, 4]] * 2, dtype=torch.int32)
    return config, transformers.MiniCPMOcrForConditionalGeneration, inputs


@family("molmo2", "bidirectional")
def molmo2() -> Built:
    """Features are added to placeholder embeddings; they and the markers around them attend both ways."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    patch, start, low_start, end, column = IMAGE, 62, 61, 60, 59
    config = transformers.Molmo2Config(
        vision_config={**VISION, **heads, "image_size": [16, 16]},
        adapter_config={
            **heads,
            "vision_feature_layer": [1, 0],
            "hidden_size": 16,
            "intermediate_size": 32,
            "text_hidden_size": 32,
        },
        text_config={
            **TEXT,
            "vocab_size": 56,
            "additional_vocab_size": 8,
            "rope_scaling_layers": [1, 3],
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
        image_patch_id=patch,
        image_start_token_id=start,
        low_res_image_start_token_id=low_start,
        image_end_token_id=end,
        frame_start_token_id=58,
        frame_end_token_id=57,
    )
    inputs = tokens(9, 18)
    # The whole picture as one feature, then its two halves: one feature for each crop of 2 x 2 patches.
    picture = [low_start, patch, column, end, start, patch, patch, column, end]
    inputs["input_ids"][:, 4:13] = torch.tensor(picture)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] > 56).long()
    inputs["pixel_values"] = image_noise(6, 4, 192)
    inputs["image_token_pooling"] = torch.arange(24).reshape(6, 4)
    inputs["image_grids"] = torch.tensor([[1, 1, 1, 2]] * 2)
    inputs["image_num_crops"] = torch.tensor([3, 3])
    return config, transformers.Molmo2ForConditionalGeneration, inputs
