"""Families that bring pixels in between layers, share things between layers, or mix tokens otherwise."""

from typing import Any

import tiny_models
import torch
import transformers
from family import UNBUILT, family
from tiny_models import IMAGE, PAD, TEXT, VISION, Built, Inputs, image_noise, tokens

family("qwen3_vl", "deepstack")(tiny_models.qwen3_vl)
family("gemma4", "shared")(tiny_models.gemma4)
family("lfm2_vl", "hybrid")(tiny_models.lfm2_vl)

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "depth": 3,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
}
QWEN_IDS = {"image_token_id": IMAGE, "video_token_id": 62}
MARKER_IDS = {"vision_start_token_id": 61, "vision_end_token_id": 60}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}


def without(settings: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def qwen_inputs() -> Inputs:
    """Images of 4 x 4 flat patches, merged two by two, and the token types that set their positions."""
    inputs = {**tokens(4), "pixel_values": image_noise(32, 96)}
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return inputs


@family("qwen3_vl_moe", "deepstack")
def qwen3_vl_moe() -> Built:
    """DeepStack between the first layers, which are mixtures of experts."""
    config = transformers.Qwen3VLMoeConfig(
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
        text_config={**TEXT, **EXPERTS, "rope_parameters": MROPE},
        **QWEN_IDS,
        **MARKER_IDS,
    )
    return config, transformers.Qwen3VLMoeForConditionalGeneration, qwen_inputs()


@family("qwen3_omni_moe_thinker", "deepstack")
def qwen3_omni_moe_thinker() -> Built:
    """DeepStack as in Qwen3-VL, next to an audio encoder; no head size of its own in the text part."""
    config = transformers.Qwen3OmniMoeThinkerConfig(
        vision_config={**QWEN_VISION, "deepstack_visual_indexes": [0, 1]},
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 8,
            "max_source_positions": 16,
            "downsample_hidden_size": 8,
            "output_dim": 32,
        },
        text_config={**TEXT, **EXPERTS, "rope_parameters": MROPE},
        audio_token_id=59,
        audio_start_token_id=58,
        **QWEN_IDS,
        **MARKER_IDS,
    )
    inputs = without(qwen_inputs(), "mm_token_type_ids")
    inputs["input_ids"][:, 3], inputs["input_ids"][:, 8] = 61, 60  # image positions start at such a marker
    return config, transformers.Qwen3OmniMoeThinkerForConditionalGeneration, inputs


LINEAR_ATTENTION: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0},
}


@family("qwen3_5", "hybrid")
def qwen3_5() -> Built:
    """Gated delta-net layers, which mix tokens through a state, alternate with attention layers."""
    config = transformers.Qwen3_5Config(
        vision_config=QWEN_VISION,
        text_config={**TEXT, **LINEAR_ATTENTION, "layer_types": ["linear_attention", "full_attention"] * 2},
        **QWEN_IDS,
        **MARKER_IDS,
    )
    return config, transformers.Qwen3_5ForConditionalGeneration, qwen_inputs()


@family("qwen3_5_moe", "hybrid")
def qwen3_5_moe() -> Built:
    """Delta-net and attention layers alternate, each with experts, one of them shared."""
    config = transformers.Qwen3_5MoeConfig(
        vision_config=QWEN_VISION,
        text_config={
            **without(TEXT, "intermediate_size"),
            **LINEAR_ATTENTION,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
        **QWEN_IDS,
        **MARKER_IDS,
    )
    return config, transformers.Qwen3_5MoeForConditionalGeneration, qwen_inputs()


@family("qwen4_exp", "hybrid")
def qwen4_exp() -> Built:
    """Several residual streams side by side; delta-net layers alternate with attention to indexed keys.

    The first layer also adds embeddings of the n-grams of token ids.
    """
    config = transformers.Qwen4ExpConfig(
        vision_config=QWEN_VISION,
        text_config={
            **without(TEXT, "intermediate_size"),
            **LINEAR_ATTENTION,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "indexed_attention"] * 2,
            "hc_count": 2,
            "hc_lowrank": 4,
            "ple_layer_ids": [1],
            "heads_per_ngram": 2,
            "ngram_vocab_size_base": 32,
            "make_ngram_vocab_size_divisible_by": 8,
            "split_ngram_parts": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 8,
            "indexer_compress_ratio": 2,
        },
        **QWEN_IDS,
        **MARKER_IDS,
    )
    return config, transformers.Qwen4ExpForConditionalGeneration, qwen_inputs()


@family("granite4_vision", "deepstack")
def granite4_vision() -> Built:
    """Image tokens enter empty; every layer but the last first adds features that a Q-Former made for it."""
    config = transformers.Granite4VisionConfig(
        vision_config={"model_type": "clip_vision_model", **VISION, "hidden_size": 64},
        text_config=without(TEXT, "head_dim"),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 32]],
        downsample_rate="1/2",
        deepstack_layer_map=[[-2, 0], [-1, 1]],
        spatial_target_layers=[2],
    )
    # the whole image and two tiles of it, one feature each, and the end of a line
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 3, 16, 16)}
    inputs["image_sizes"] = torch.tensor([[16, 32]] * 2)
    return config, transformers.Granite4VisionForConditionalGeneration, inputs


@family("lfm3_vl", "hybrid")
def lfm3_vl() -> Built:
    """Convolution layers stand between full and sliding attention, in the vision tower too."""
    config = transformers.Lfm3VlConfig(
        vision_config={
            **without(VISION, "image_size"),
            "num_key_value_heads": 1,
            "patch_size": 4,
            "layer_types": ["conv", "full_attention"],
        },
        text_config={
            "model_type": "lfm3",
            **TEXT,
            "conv_L_cache": 3,
            "sliding_window": 4,
            "layer_types": ["conv", "full_attention", "conv", "sliding_attention"],
        },
        projector_hidden_size=32,
        **QWEN_IDS,
        **MARKER_IDS,
    )
    return config, transformers.Lfm3VlForConditionalGeneration, without(qwen_inputs(), "mm_token_type_ids")


@family("nemotron_h_omni", "hybrid")
def nemotron_h_omni() -> Built:
    """A layer is either a Mamba mixer, or attention, or a mixture of experts; the decoder is a CausalLM."""
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_ratio": 2.0,
            "patch_size": 4,
            "image_size": 16,
            "max_img_size": 16,
            "num_cls_tokens": 2,
            "num_registers": 1,
            "video_temporal_patch_size": 2,
        },
        text_config={
            **without(TEXT, "num_hidden_layers"),
            "layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention"],
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
        projector_hidden_size=32,
        vision_hidden_size=16,
        image_token_id=IMAGE,
        video_token_id=62,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(32, 48)}
    inputs["image_grid_hw"] = torch.tensor([[4, 4]] * 2)
    return config, transformers.NemotronH_Omni_Reasoning_V3, inputs


@family("gemma3n", "shared")
def gemma3n() -> Built:
    """Four residual streams; the last layers take keys and values from earlier ones."""
    config = transformers.Gemma3nConfig(
        audio_config={
            "hidden_size": 16,
            "input_feat_size": 16,
            "vocab_size": 2,
            "vocab_offset": 64,
            "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2,
            "sscp_conv_channel_size": (4, 4),
        },
        text_config={
            **TEXT,
            "vocab_size": 66,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 62,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        },
        vision_soft_tokens_per_image=4,
        boi_token_id=61,
        eoi_token_id=62,
        image_token_id=IMAGE,
        boa_token_id=60,
        eoa_token_id=64,
        audio_token_id=65,
    )
    tower = transformers.SiglipVisionConfig(
        **VISION, vision_use_head=False, vocab_size=2, vocab_offset=62, rms_norm_eps=1e-6
    )
    # the real tower is only in timm: another stands in, past the check that there is no other
    object.__setattr__(config, "vision_config", tower)
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)}
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    return config, transformers.Gemma3nForConditionalGeneration, inputs


@family("gemma4_unified", "bidirectional")
def gemma4_unified() -> Built:
    """No vision tower: raw patches are projected; they attend both ways; layer types alternate."""
    config = transformers.Gemma4UnifiedConfig(
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 32,
            "mm_posemb_size": 4,
            "output_proj_dims": 32,
        },
        text_config={
            **TEXT,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 4,
            "global_head_dim": 8,
        },
        audio_config=None,
        image_token_id=IMAGE,
        boi_token_id=62,
        eoi_token_id=61,
        video_token_id=60,
        audio_token_id=59,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 4, 192)}
    inputs["image_position_ids"] = torch.tensor([[[x, y] for y in range(2) for x in range(2)]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    return config, transformers.Gemma4UnifiedForConditionalGeneration, inputs


QFORMER: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "encoder_hidden_size": 16,
    "pad_token_id": PAD,
}


@family("blip-2", "inner")
def blip_2() -> Built:
    """Queries of a Q-Former read the image and become tokens of an OPT model."""
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config={
            "model_type": "opt",
            **without(TEXT, "intermediate_size", "num_key_value_heads", "head_dim"),
            "ffn_dim": 64,
            "word_embed_proj_dim": 32,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
        image_token_index=IMAGE,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.Blip2ForConditionalGeneration, inputs


def with_instruction(inputs: Inputs) -> Inputs:
    """The inputs, and the prompt in the Q-Former's own tokens."""
    inputs["qformer_input_ids"] = tokens(0)["input_ids"][:, 8:]
    inputs["qformer_attention_mask"] = torch.ones_like(inputs["qformer_input_ids"])
    return inputs


@family("instructblip", "inner")
def instructblip() -> Built:
    """The Q-Former reads the prompt as well as the image, for a Llama model."""
    config = transformers.InstructBlipConfig(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config={"model_type": "llama", **TEXT},
        num_query_tokens=4,
        image_token_index=IMAGE,
    )
    inputs = with_instruction({**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)})
    return config, transformers.InstructBlipForConditionalGeneration, inputs


@family("instructblipvideo", "inner")
def instructblipvideo() -> Built:
    """Four frames, each read by the Q-Former; the placeholder is called a video token."""
    config = transformers.InstructBlipVideoConfig(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config={"model_type": "llama", **TEXT},
        num_query_tokens=1,
        video_token_index=IMAGE,
    )
    inputs = with_instruction({**tokens(4), "pixel_values": image_noise(2, 4, 3, 16, 16)})
    return config, transformers.InstructBlipVideoForConditionalGeneration, inputs


@family("llama4", "inner")
def llama4() -> Built:
    """A CausalLM inside, where chunked attention with rotation alternates with full attention without it."""
    config = transformers.Llama4Config(
        vision_config={
            **VISION,
            "patch_size": 4,
            "intermediate_size": 64,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
            "vision_output_dim": 16,
        },
        text_config={
            **TEXT,
            "intermediate_size_mlp": 64,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "no_rope_layer_interval": 2,
            "attention_chunk_size": 10,
        },
        image_token_index=IMAGE,
        boi_token_index=62,
        eoi_token_index=61,
    )
    return (
        config,
        transformers.Llama4ForConditionalGeneration,
        {**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)},
    )


KOSMOS_TEXT: dict[str, Any] = {
    **{k: TEXT[k] for k in ("vocab_size", "max_position_embeddings", "pad_token_id", "eos_token_id")},
    "bos_token_id": 1,
    "embed_dim": 32,
    "layers": 4,
    "ffn_dim": 64,
    "attention_heads": 4,
}


@family("kosmos-2", "inner")
def kosmos_2() -> Built:
    """A mask says where image features go, in place of tokens that differ from each other."""
    config = transformers.Kosmos2Config(text_config=KOSMOS_TEXT, vision_config=VISION, latent_query_num=4)
    inputs = {**tokens(4), "pixel_values": image_noise(2, 3, 16, 16)}
    inputs["image_embeds_position_mask"] = (inputs["input_ids"] == IMAGE).long()
    inputs["input_ids"][:, 4:8] = torch.arange(50, 54)
    return config, transformers.Kosmos2ForConditionalGeneration, inputs


@family("kosmos-2.5", "inner")
def kosmos_2_5() -> Built:
    """Flat patches begin with their row and column; the mask marks the image with 1, its borders with -1."""
    config = transformers.Kosmos2_5Config(
        text_config=KOSMOS_TEXT,
        vision_config={
            **without(VISION, "image_size", "patch_size"),
            "patch_embed_hidden_size": 48,
            "head_dim": 8,
            "max_num_patches": 16,
        },
        latent_query_num=4,
    )
    inputs = tokens(4)
    where = torch.tensor([[row, column] for row in range(1, 5) for column in range(1, 5)]).expand(2, 16, 2)
    inputs["flattened_patches"] = torch.cat([where.float(), image_noise(2, 16, 48)], dim=-1)
    inputs["image_embeds_position_mask"] = (inputs["input_ids"] == IMAGE).long()
    inputs["image_embeds_position_mask"][:, [3, 8]] = -1
    return config, transformers.Kosmos2_5ForConditionalGeneration, inputs


def minicpm(config_class: type, **ids: int) -> Any:
    return config_class(
        vision_config={**VISION, "patch_size": 2, "insert_layer_id": 0},
        text_config={
            "model_type": "qwen3_5_text",
            **TEXT,
            **LINEAR_ATTENTION,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
        image_size=16,
        insert_layer_id=0,
        image_token_id=IMAGE,
        video_token_id=62,
        **ids,
    )


def minicpm_inputs() -> Inputs:
    """Patches of both images in one long strip; sixteen of them make a token."""
    inputs = {**tokens(4), "pixel_values": image_noise(1, 3, 2, 256)}
    inputs["target_sizes"] = torch.tensor([[8, 8]] * 2, dtype=torch.int32)
    return inputs


@family("minicpmv4_6", "hybrid")
def minicpmv4_6() -> Built:
    """Images share one strip of patches; the decoder is that of Qwen3.5."""
    config = minicpm(transformers.MiniCPMV4_6Config)
    return config, transformers.MiniCPMV4_6ForConditionalGeneration, minicpm_inputs()


@family("minicpmv4_7", "hybrid")
def minicpmv4_7() -> Built:
    """As MiniCPM-V 4.6, with positions on a canvas, which markers and token types lay out."""
    config = minicpm(
        transformers.MiniCPMV4_7Config,
        image_start_id=61,
        image_end_id=60,
        slice_start_id=59,
        slice_end_id=58,
        newline_id=57,
    )
    inputs = minicpm_inputs()
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    inputs["input_ids"][:, 3], inputs["input_ids"][:, 8] = 61, 60
    return config, transformers.MiniCPMV4_7ForConditionalGeneration, inputs


SAM: dict[str, Any] = {
    **without(VISION, "intermediate_size", "patch_size"),
    "output_channels": 8,
    "patch_size": 2,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 32,
    "downsample_channels": [8, 16],
}
OCR_TEXT: dict[str, Any] = {
    **without(TEXT, "head_dim"),
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}


@family("deepseek_ocr2", "moe")
def deepseek_ocr2() -> Built:
    """Queries, always 144 of them, read the image in a small language model; a separator follows them."""
    config = transformers.DeepseekOcr2Config(
        vision_config={
            "sam_config": SAM,
            "encoder_config": {
                **{k: TEXT[k] for k in ("vocab_size", "max_position_embeddings")},
                **without(VISION, "image_size", "patch_size"),
                "num_key_value_heads": 1,
                "max_position_embeddings": 256,
            },
        },
        text_config={**OCR_TEXT, "max_position_embeddings": 256},
        image_token_id=IMAGE,
    )
    inputs = {**tokens(145, 154), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.DeepseekOcr2ForConditionalGeneration, inputs


@family("unlimited_ocr", "moe")
def unlimited_ocr() -> Built:
    """Every row of image tokens ends with a newline, the image with a separator; a window slides."""
    config = transformers.UnlimitedOcrConfig(
        vision_config={"sam_config": SAM, "encoder_config": VISION},
        text_config={**OCR_TEXT, "sliding_window": 4},
        image_token_id=IMAGE,
    )
    inputs = {**tokens(7, 16), "pixel_values": image_noise(2, 3, 16, 16)}
    return config, transformers.UnlimitedOcrForConditionalGeneration, inputs


UNBUILT["diffusion_gemma"] = (
    "denoises a canvas of tokens that see one another both ways: it has no decoder of next tokens to drive."
)
