"""Families with rotary positions of an image grid, and recent large mixtures."""

from typing import Any

import torch
import transformers
from family import family
from tiny_models import IMAGE, TEXT, VISION, Built, Inputs, image_noise, tokens

SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
PATCHES: dict[str, Any] = {  # a vision tower that takes patches flattened by the processor
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
}
WINDOWED = {**PATCHES, "out_hidden_size": 32, "window_size": 8, "fullatt_block_indexes": [1]}
GLM_TEXT = {  # half of a head rotates
    **TEXT,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {**SECTIONS, "partial_rotary_factor": 0.5},
}
MIXTURE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 62,
    "vision_start_token_id": 61,
    "vision_end_token_id": 60,
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": 62,
    "image_start_token_id": 61,
    "image_end_token_id": 60,
    "video_start_token_id": 59,
    "video_end_token_id": 58,
}


def grid_inputs(pixels_per_patch: int = 96, start: int = 61, end: int = 60) -> Inputs:
    """One image of 4 x 4 patches in each row, merged to 2 x 2 tokens between a start and an end token."""
    inputs = {**tokens(4), "pixel_values": image_noise(32, pixels_per_patch)}
    inputs["input_ids"][:, 3], inputs["input_ids"][:, 8] = start, end
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return inputs


@family("qwen2_vl", "decoder")
def qwen2_vl() -> Built:
    """Image tokens have rotary positions of time, height and width."""
    config = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
        },
        text_config={**TEXT, "rope_parameters": SECTIONS},
        **QWEN_IDS,
    )
    return config, transformers.Qwen2VLForConditionalGeneration, grid_inputs()


@family("qwen2_5_vl", "decoder")
def qwen2_5_vl() -> Built:
    """The vision tower attends in windows, except in its last block."""
    config = transformers.Qwen2_5_VLConfig(
        vision_config=WINDOWED,
        text_config={**TEXT, "rope_parameters": SECTIONS},
        **QWEN_IDS,
    )
    return config, transformers.Qwen2_5_VLForConditionalGeneration, grid_inputs()


@family("qwen2_5_omni_thinker", "decoder")
def qwen2_5_omni_thinker() -> Built:
    """The part of an omni model that reads: positions come from start tokens, not from token types."""
    config = transformers.Qwen2_5OmniThinkerConfig(
        vision_config=WINDOWED,
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 8,
            "n_window": 4,
            "max_source_positions": 16,
            "output_dim": 32,
        },
        text_config={**TEXT, "rope_parameters": SECTIONS},
        image_token_index=IMAGE,
        video_token_index=62,
        audio_token_index=59,
        vision_start_token_id=61,
        vision_end_token_id=60,
        audio_start_token_id=58,
        audio_end_token_id=57,
        user_token_id=56,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.Qwen2_5OmniThinkerForConditionalGeneration, inputs


def _glm(config_class: type, model_class: type, **text: Any) -> Built:
    config = config_class(
        vision_config={**PATCHES, "out_hidden_size": 32, "image_size": 16},
        text_config={**GLM_TEXT, **text},
        **GLM_IDS,
    )
    return config, model_class, grid_inputs()


@family("glm4v", "decoder")
def glm4v() -> Built:
    """Layers norm what attention and MLP return as well; half of each head rotates."""
    return _glm(transformers.Glm4vConfig, transformers.Glm4vForConditionalGeneration)


@family("glm4v_moe", "moe")
def glm4v_moe() -> Built:
    """One dense layer, then mixtures of experts with a shared one."""
    return _glm(transformers.Glm4vMoeConfig, transformers.Glm4vMoeForConditionalGeneration, **MIXTURE)


@family("glm46v", "decoder")
def glm46v() -> Built:
    """GLM-4.6V: the model of glm4v under a config of its own."""
    return _glm(transformers.Glm46VConfig, transformers.Glm46VForConditionalGeneration)


@family("glmga", "decoder")
def glmga() -> Built:
    """The class of glm46v under another config."""
    return _glm(transformers.GlmgaConfig, transformers.Glm46VForConditionalGeneration)


@family("glm_ocr", "decoder")
def glm_ocr() -> Built:
    """As glm4v, with a small decoder and normed queries and keys in the vision tower."""
    return _glm(transformers.GlmOcrConfig, transformers.GlmOcrForConditionalGeneration)


@family("paddleocr_vl", "decoder")
def paddleocr_vl() -> Built:
    """Patches come as small images; learned positions are resampled to each image's grid."""
    config = transformers.PaddleOCRVLConfig(
        vision_config={**VISION, "patch_size": 4},
        text_config={**TEXT, "rope_parameters": SECTIONS},
        **QWEN_IDS,
    )
    inputs = grid_inputs(48)
    inputs["pixel_values"] = inputs["pixel_values"].reshape(32, 3, 4, 4)
    return config, transformers.PaddleOCRVLForConditionalGeneration, inputs


@family("video_llama_3", "decoder")
def video_llama_3() -> Built:
    """Patches are merged by interpolation; text and image tokens have plain positions."""
    config = transformers.VideoLlama3Config(
        vision_config={k: VISION[k] for k in VISION if k != "image_size"} | {"patch_size": 4},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=IMAGE,
        video_token_id=62,
    )
    inputs = grid_inputs(48)
    inputs["image_merge_sizes"] = torch.tensor([2, 2])
    del inputs["mm_token_type_ids"]
    return config, transformers.VideoLlama3ForConditionalGeneration, inputs


@family("ernie4_5_vl_moe", "moe")
def ernie4_5_vl_moe() -> Built:
    """Text and image tokens, with the tokens around an image, are routed to experts of their own."""
    config = transformers.Ernie4_5_VLMoeConfig(
        vision_config=PATCHES,
        text_config={
            **TEXT,
            "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 2]},
            "moe_k": 2,
            "moe_num_experts": 4,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [16, 8],
        },
        **GLM_IDS,
    )
    inputs = grid_inputs(48)
    ids = inputs["input_ids"]
    inputs["moe_mm_token_type_ids"] = torch.isin(ids, torch.tensor([60, 61, IMAGE])).long()
    return config, transformers.Ernie4_5_VLMoeForConditionalGeneration, inputs


@family("hunyuan_vl", "decoder")
def hunyuan_vl() -> Built:
    """Placeholders also hold a learned start, end and row ends; images are numbered through the batch."""
    config = transformers.HunYuanVLConfig(
        vision_config={
            **{k: VISION[k] for k in VISION if k != "image_size"},
            "patch_size": 4,
            "max_image_size": 16,
            "out_hidden_size": 32,
        },
        text_config={**TEXT, "rope_parameters": {**SECTIONS, "mrope_section": [1, 1, 1, 1]}},
        image_token_id=IMAGE,
        im_start_id=61,
        im_end_id=60,
        im_newline_id=59,
    )
    inputs = {**tokens(8, n=18), "pixel_values": image_noise(32, 48)}
    inputs["input_ids"][:, 3], inputs["input_ids"][:, 12] = 61, 60
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * 2)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return config, transformers.HunYuanVLForConditionalGeneration, inputs


@family("hyperclovax_vision_v2", "decoder")
def hyperclovax_vision_v2() -> Built:
    """A windowed vision tower in front of a decoder that scales residuals, attention and logits."""
    config = transformers.HyperCLOVAXVisionV2Config(
        vision_config={"model_type": "qwen2_5_vl_vision", **WINDOWED},
        text_config={
            "model_type": "hyperclovax",
            **TEXT,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
            "logits_scaling": 0.5,
        },
        image_token_id=IMAGE,
        video_token_id=62,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.HyperCLOVAXVisionV2ForConditionalGeneration, inputs


@family("exaone4_5", "decoder")
def exaone4_5() -> Built:
    """Sliding layers rotate, every second layer is full and has no positions."""
    config = transformers.Exaone4_5_Config(
        vision_config={**WINDOWED, "num_key_value_heads": 1},
        text_config={"model_type": "exaone4", **TEXT, "sliding_window": 4, "sliding_window_pattern": 2},
        image_token_id=IMAGE,
        video_token_id=62,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.Exaone4_5_ForConditionalGeneration, inputs


@family("glm5_next", "hybrid")
def glm5_next() -> Built:
    """Four residual streams; linear attention alternates with attention to a selection of pooled tokens."""
    config = transformers.Glm5NextConfig(
        vision_config={
            **PATCHES,
            "out_hidden_size": 32,
            "image_size": 16,
            "projection_intermediate_size": 32,
        },
        text_config={
            **{k: TEXT[k] for k in TEXT if k != "head_dim"},
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "indexed_attention"] * 2,
            "indexer_types": ["full"] * 4,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "index_head_dim": 8,
            "index_n_heads": 8,
            "index_topk": 4,
            "index_kpool": 2,
        },
        **GLM_IDS,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.Glm5NextForConditionalGeneration, inputs


MLA = {  # attention whose keys and values are expanded from a small latent
    **{k: TEXT[k] for k in TEXT if k != "head_dim"},
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}


@family("kimi_k25", "moe")
def kimi_k25() -> Built:
    """A mixture with latent attention behind a vision tower that pools frames over time."""
    config = transformers.Kimi_K25Config(
        vision_config={
            **{k: VISION[k] for k in VISION if k != "image_size"},
            "patch_size": 4,
            "pos_emb_height": 4,
            "pos_emb_width": 4,
        },
        text_config={"model_type": "deepseek_v3", **MLA, **MIXTURE, "n_group": 1, "topk_group": 1},
        projection_hidden_size=16,
        **QWEN_IDS,
    )
    inputs = grid_inputs(48)
    inputs["pixel_values"] = inputs["pixel_values"].reshape(32, 3, 4, 4)
    del inputs["mm_token_type_ids"]
    return config, transformers.Kimi_K25ForConditionalGeneration, inputs


@family("dots3_note", "moe")
def dots3_note() -> Built:
    """Layers that attend to what an indexer selects alternate with sliding layers of other head sizes."""
    config = transformers.Dots3NoteConfig(
        vision_config={
            **{k: VISION[k] for k in VISION if k != "image_size"},
            "patch_size": 4,
            "moe_intermediate_size": 16,
            "mlp_layer_types": ["dense", "sparse"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "adapter_in_dim": 16,
            "adapter_out_dim": 32,
        },
        audio_config={
            **{k: VISION[k] for k in VISION if k not in ("image_size", "patch_size")},
            "num_hidden_layers": 1,
            "feature_size": 8,
            "downsample_hidden_size": 8,
            "adapter_input_size": 16,
            "adapter_out_dim": 32,
        },
        text_config={
            **MLA,
            **MIXTURE,
            "head_dim": 8,
            "shared_experts_intermediate_size": 16,
            "layer_types": ["indexed_attention", "sliding_attention"] * 2,
            "sliding_window": 4,
            "index_topk": 6,
            "index_head_dim": 8,
            "index_n_heads": 8,
            "swa_num_attention_heads": 2,
            "swa_num_key_value_heads": 2,
            "swa_q_lora_rank": 16,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 12,
            "swa_qk_nope_head_dim": 8,
            "swa_v_head_dim": 8,
        },
        image_token_id=IMAGE,
        video_token_id=62,
        audio_token_id=59,
    )
    inputs = grid_inputs(48)
    del inputs["mm_token_type_ids"]
    return config, transformers.Dots3NoteForConditionalGeneration, inputs


@family("step3p7", "moe")
def step3p7() -> Built:
    """An image is also cut into local patches, whose features come before those of the whole image."""
    config = transformers.Step3p7Config(
        vision_config={**VISION, "image_size": 32, "patch_size": 4, "mlp_ratio": 2.0},
        text_config={
            **TEXT,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "sliding_window": 4,
            "num_sliding_attention_heads": 2,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "share_expert_dim": 16,
        },
        image_token_id=IMAGE,
    )
    inputs = {**tokens(7, n=18), "pixel_values": image_noise(2, 3, 32, 32)}
    for place, token in ((3, 62), (5, 61), (6, 60), (11, 59)):  # the ends of a local patch and of the image
        inputs["input_ids"][:, place] = token
    inputs["pixel_values_local"] = image_noise(2, 3, 16, 16)
    inputs["num_local_patches"] = torch.tensor([1, 1])
    return config, transformers.Step3p7ForConditionalGeneration, inputs


@family("minimax_m3_vl", "moe")
def minimax_m3_vl() -> Built:
    """Full layers alternate with layers whose indexer chooses blocks of keys, without seeing the mask."""
    config = transformers.MiniMaxM3VLConfig(
        vision_config={**VISION, "patch_size": 4},
        text_config={
            **TEXT,
            "intermediate_size": 16,
            "dense_intermediate_size": 64,
            "shared_intermediate_size": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rotary_dim": 4,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 2,
            "index_topk_blocks": 3,
        },
        image_token_index=IMAGE,
        video_token_index=62,
        projector_hidden_size=32,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.MiniMaxM3SparseForConditionalGeneration, inputs


PIXTRAL = {"model_type": "pixtral", **VISION, "patch_size": 4, "head_dim": 8}


def pixtral_inputs() -> Inputs:
    """One image of 2 x 2 tokens in each row: a token ends each line, another one the image."""
    inputs = {**tokens(6, n=15), "pixel_values": image_noise(2, 3, 16, 16)}
    inputs["input_ids"][:, 6], inputs["input_ids"][:, 9] = 62, 61
    inputs["image_sizes"] = torch.tensor([[16, 16]] * 2)
    return inputs


@family("mistral4", "moe")
def mistral4() -> Built:
    """A decoder without a vision model of its own: images reach it inside Mistral 3."""
    config = transformers.Mistral3Config(
        vision_config=PIXTRAL,
        text_config={"model_type": "mistral4", **MLA, **MIXTURE},
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    return config, transformers.Mistral3ForConditionalGeneration, pixtral_inputs()


@family("mistral_large4", "shared")
def mistral_large4() -> Built:
    """Layers take latent keys and values, and the selection of an indexer, from earlier ones."""
    config = transformers.MistralLarge4Config(
        vision_config={**PIXTRAL, "hidden_act": "silu"},
        text_config={
            **{k: MLA[k] for k in MLA if k != "q_lora_rank"},
            **MIXTURE,
            "no_rope_layers": [1, 0, 1, 0],
            "kv_source_layers": [0, 1, 0, 1],
            "indexer_types": ["full", "shared"] * 2,
            "index_topk": 6,
            "index_head_dim": 8,
            "index_n_heads": 8,
        },
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    return config, transformers.MistralLarge4ForConditionalGeneration, pixtral_inputs()


MUSE_VISION = {
    **{k: VISION[k] for k in VISION if k != "image_size"},
    "patch_size": 4,
    "pos_emb_height": 2,  # also the side of a window
    "pos_emb_width": 2,
    "layer_types": ["window_attention", "full_attention"],
}


@family("muse_glimmer", "decoder")
def muse_glimmer() -> Built:
    """Embeddings and image features are normed; three sliding layers, then a full one without positions."""
    config = transformers.MuseGlimmerConfig(
        vision_config=MUSE_VISION,
        text_config={**TEXT, "sliding_window": 4},
        image_token_id=IMAGE,
        video_token_id=62,
        out_hidden_size=64,
        projector_hidden_size=32,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.MuseGlimmerForConditionalGeneration, inputs


@family("muse_spark", "moe")
def muse_spark() -> Built:
    """As muse_glimmer, with gated residuals and mixtures of experts that work at a smaller width."""
    config = transformers.MuseSparkConfig(
        vision_config=MUSE_VISION,
        audio_config={
            "patch_sizes": [4, 2],
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_hidden_layers": 2,
            "conv_kernel_size": 3,
            "out_hidden_size": 32,
        },
        text_config={
            **TEXT,
            "sliding_window": 4,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "moe_hidden_size": 16,
            "moe_intermediate_size": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        image_token_id=IMAGE,
        video_token_id=62,
        audio_token_id=59,
        out_hidden_size=64,
        projector_hidden_size=32,
    )
    inputs = grid_inputs()
    del inputs["mm_token_type_ids"]
    return config, transformers.MuseSparkForConditionalGeneration, inputs


INKLING_TEXT = {
    **{k: TEXT[k] for k in TEXT if k != "bos_token_id"},
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1,
    "swa_head_dim": 16,
    "sliding_window_size": 4,
    "layer_types": ["hybrid_sliding", "hybrid"] * 2,
    "d_rel": 4,
    "rel_extent": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}


@family("inkling_mm_model", "hybrid")
def inkling_mm_model() -> Built:
    """Every layer has attention and short convolutions, which carry tokens forward too; no positions."""
    config = transformers.InklingConfig(
        vision_config={"patch_size": 2, "num_hidden_layers": 3},
        audio_config={"n_mel_bins": 4, "mel_vocab_size": 8},
        text_config={
            **INKLING_TEXT,
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "n_shared_experts": 1,
            "logits_mup_width_multiplier": 2.0,
        },
        image_token_id=IMAGE,
        audio_token_id=59,
        image_bos_token_id=61,
        audio_bos_token_id=58,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(8, 2, 2, 2, 3)}
    inputs["input_ids"][:, 3] = 61
    return config, transformers.InklingForConditionalGeneration, inputs


@family("inkling2", "hybrid")
def inkling2() -> Built:
    """As inkling, and each layer also attends over the streams that left earlier blocks of layers."""
    config = transformers.Inkling2Config(
        vision_config={
            **{k: VISION[k] for k in VISION if k != "image_size"},
            "patch_size": 4,
            "posemb_grid_size": 4,
            "projection_hidden_dim": 32,
            "text_hidden_size": 32,
        },
        text_config={
            **{k: INKLING_TEXT[k] for k in INKLING_TEXT if k != "intermediate_size"},
            "unpadded_vocab_size": 64,
            "n_layers_per_attn_res_block": 2,
        },
        image_token_id=IMAGE,
    )
    inputs = {**tokens(4), "pixel_values": image_noise(8, 8, 8, 3)}
    inputs["image_grid_thw"] = torch.tensor([[1, 2, 2]] * 2)
    return config, transformers.Inkling2ForConditionalGeneration, inputs
