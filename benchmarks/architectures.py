"""Tiny random models of the architectures that transformers publishes, made in code."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as hf

VOCAB = 97
IDS = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SMALL: Mapping[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
HEADS: Mapping[str, Any] = {**SMALL, "head_dim": 8}
OWN_HEADS: Mapping[str, Any] = {**SMALL, "num_key_value_heads": 4}
EXPERTS: Mapping[str, Any] = {
    **SMALL,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}
LATENT: Mapping[str, Any] = {
    **EXPERTS,
    "num_key_value_heads": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
DELTA: Mapping[str, Any] = {
    **EXPERTS,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA: Mapping[str, Any] = {
    **SMALL,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
    "mamba_chunk_size": 4,
}
LOOPED: Mapping[str, Any] = {
    **HEADS,
    "num_hidden_layers": 3,
    "n_input_layers": 1,
    "sliding_window": 4,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
VISION: Mapping[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
QWEN_VISION: Mapping[str, Any] = {
    "depth": 1,
    "embed_dim": 16,
    "hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 24,
    "out_hidden_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _of(name: str, fields: Mapping[str, Any], **more: Any) -> Callable[[], hf.PreTrainedConfig]:
    """Return what makes ``transformers.<name>Config`` with the fields that it has."""

    def make() -> hf.PreTrainedConfig:
        config: hf.PreTrainedConfig = getattr(hf, f"{name}Config")(**{**fields, **more})
        return config

    return make


ARCHITECTURES: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    # Decoders with attention alone.
    "llama": _of("Llama", SMALL),
    "llama-tied": _of("Llama", SMALL, tie_word_embeddings=True, attention_bias=True),
    "mistral": _of("Mistral", SMALL, sliding_window=4),
    "ministral3": _of("Ministral3", HEADS),
    "mixtral": _of("Mixtral", EXPERTS),
    "qwen2": _of("Qwen2", SMALL),
    "qwen2-moe": _of("Qwen2Moe", EXPERTS, shared_expert_intermediate_size=16),
    "qwen3": _of("Qwen3", HEADS),
    "qwen3-moe": _of("Qwen3Moe", EXPERTS, head_dim=8),
    "gemma": _of("Gemma", HEADS),
    "gemma2": _of("Gemma2", HEADS, sliding_window=4),
    "gemma3-text": _of("Gemma3Text", HEADS, sliding_window=4),
    "gemma3n-text": _of(
        "Gemma3nText",
        HEADS,
        sliding_window=4,
        num_hidden_layers=4,
        intermediate_size=[48] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "gemma4-text": _of(
        "Gemma4Text",
        HEADS,
        sliding_window=4,
        global_head_dim=8,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": _of("Phi", OWN_HEADS),
    "phi3": _of("Phi3", SMALL),
    "phimoe": _of("Phimoe", EXPERTS),
    "stablelm": _of("StableLm", SMALL),
    "starcoder2": _of("Starcoder2", SMALL),
    "cohere": _of("Cohere", SMALL),
    "cohere2": _of("Cohere2", HEADS, sliding_window=4),
    "granite": _of("Granite", SMALL, logits_scaling=3.0),
    "granitemoe": _of("GraniteMoe", EXPERTS, logits_scaling=3.0),
    "olmo": _of("Olmo", SMALL),
    "olmo2": _of("Olmo2", SMALL),
    "olmo3": _of("Olmo3", SMALL, sliding_window=4),
    "olmoe": _of("Olmoe", EXPERTS),
    "glm": _of("Glm", HEADS),
    "glm4": _of("Glm4", HEADS),
    "glm4-moe": _of("Glm4Moe", LATENT, head_dim=8),
    "deepseek-v2": _of("DeepseekV2", LATENT),
    "deepseek-v3": _of("DeepseekV3", LATENT),
    "smollm3": _of("SmolLM3", SMALL),
    "exaone4": _of("Exaone4", SMALL, sliding_window=4),
    "ernie4-5": _of("Ernie4_5", HEADS),
    "hunyuan-dense": _of("HunYuanDenseV1", HEADS),
    "hyperclovax": _of("HyperCLOVAX", SMALL, logits_scaling=0.5),
    "seed-oss": _of("SeedOss", HEADS),
    "helium": _of("Helium", HEADS),
    "nemotron": _of("Nemotron", SMALL),
    "nanochat": _of("NanoChat", SMALL),
    "apertus": _of("Apertus", SMALL),
    "arcee": _of("Arcee", SMALL),
    "minimax-m2": _of("MiniMaxM2", EXPERTS, head_dim=8),
    "gpt2": _of("GPT2", {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "gpt-neox": _of("GPTNeoX", OWN_HEADS),
    "gptj": _of(
        "GPTJ", {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, rotary_dim=4
    ),
    "gpt-neo": _of(
        "GPTNeo",
        OWN_HEADS,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
    ),
    "gpt-bigcode": _of(
        "GPTBigCode", {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    ),
    "opt": _of("OPT", OWN_HEADS, ffn_dim=48, word_embed_proj_dim=32),
    "bloom": _of("Bloom", {**IDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": _of("Mpt", {**IDS, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "falcon": _of("Falcon", OWN_HEADS, alibi=False),
    "falcon-alibi": _of("Falcon", OWN_HEADS, alibi=True, new_decoder_architecture=False),
    "persimmon": _of("Persimmon", OWN_HEADS),
    "codegen": _of(
        "CodeGen",
        {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        rotary_dim=4,
    ),
    "xglm": _of(
        "XGLM", {**IDS, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
    ),
    "biogpt": _of("BioGpt", OWN_HEADS),
    "dbrx": _of(
        "Dbrx",
        {**IDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
        ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
    ),
    "llama4-text": _of(
        "Llama4Text",
        EXPERTS,
        head_dim=8,
        intermediate_size_mlp=48,
        attention_chunk_size=8,
        moe_layers=[],
        layer_types=["chunked_attention", "full_attention"],
    ),
    "gpt-oss": _of("GptOss", EXPERTS, head_dim=8, sliding_window=4),
    "exaone": _of("Exaone", SMALL),
    "sarvam-moe": _of("SarvamMoE", LATENT, head_dim=8),
    "sarvam-mla": _of("SarvamMLA", LATENT),
    "apertus1.5-text": _of("Apertus1p5Text", SMALL),
    # Layers that a token passes twice.
    "dory": _of("Dory", LOOPED, n_output_layers=1),
    "dory-last-loop": _of("Dory", LOOPED, n_output_layers=0, recurrent_kv_cache_mode="last_loop"),
    "diffllama": _of("DiffLlama", SMALL),
    "doge": _of("Doge", SMALL),
    # Recurrent, convolutional and hybrid layers.
    "qwen3-next": _of("Qwen3Next", DELTA),
    "qwen3.5-text": _of("Qwen3_5Text", DELTA),
    "qwen3.5-moe-text": _of("Qwen3_5MoeText", DELTA),
    "lara-mini": _of("LaraMini", DELTA),
    "falcon-h1": _of("FalconH1", MAMBA),
    "lfm2": _of("Lfm2", SMALL, layer_types=["conv", "full_attention"], conv_L_cache=3),
    "granite-hybrid": _of(
        "GraniteMoeHybrid",
        {**MAMBA, **EXPERTS},
        shared_intermediate_size=16,
        logits_scaling=3.0,
        layer_types=["mamba", "attention"],
    ),
    "mamba": _of("Mamba", {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "mamba2": _of(
        "Mamba2",
        {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=4,
    ),
    "falcon-mamba": _of(
        "FalconMamba", {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    ),
    "jamba": _of(
        "Jamba",
        {**MAMBA, **EXPERTS},
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "bamba": _of("Bamba", MAMBA, attn_layer_indices=[1]),
    "nemotron-h": _of(
        "NemotronH",
        {**IDS, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4},
        num_key_value_heads=2,
        head_dim=8,
        layers_block_type=["mamba", "attention"],
        ssm_state_size=8,
        mamba_num_heads=4,
        mamba_head_dim=16,
        n_groups=1,
        chunk_size=4,
    ),
    "recurrent-gemma": _of(
        "RecurrentGemma", HEADS, lru_width=32, attention_window_size=64, num_hidden_layers=3
    ),
    "zamba2": _of(
        "Zamba2",
        {**IDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3},
        num_attention_heads=4,
        num_key_value_heads=4,
        n_mamba_heads=8,
        mamba_d_state=8,
        mamba_ngroups=1,
        chunk_size=4,
        layers_block_type=["mamba", "hybrid", "mamba"],
        hybrid_layer_ids=[1],
        num_mem_blocks=1,
        use_mem_rope=True,
        adapter_rank=4,
    ),
    "minimax": _of(
        "MiniMax",
        EXPERTS,
        head_dim=8,
        block_size=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "olmo-hybrid": _of(
        "OlmoHybrid",
        {**OWN_HEADS},
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "rwkv": _of("Rwkv", {**IDS, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
    "inkling2-loop-text": _of(
        "Inkling2LoopText",
        HEADS,
        unpadded_vocab_size=VOCAB,
        num_hidden_layers=3,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        sliding_window_size=4,
        d_rel=4,
        rel_extent=16,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_layers_per_attn_res_block=1,
        loop_layer_index_start=1,
        loop_layer_index_end=2,
        loop_num_passes=2,
        loop_gate_rank=4,
    ),
    # Composite configurations.
    "gemma3": _of(
        "Gemma3",
        {},
        text_config={**HEADS, "sliding_window": 4},
        vision_config=dict(VISION),
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    ),
    "qwen3.5": _of("Qwen3_5", {}, text_config=dict(DELTA), vision_config=dict(QWEN_VISION)),
    "llava": _of(
        "Llava",
        {},
        text_config={**SMALL, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model"},
        image_token_index=90,
    ),
    "mistral3": _of(
        "Mistral3",
        {},
        text_config={**HEADS, "model_type": "mistral"},
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 8},
        image_token_index=90,
    ),
    "qwen2-vl": _of(
        "Qwen2VL",
        {},
        text_config={**SMALL, "rope_parameters": MROPE},
        vision_config=dict(QWEN_VISION),
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    ),
    "qwen3-vl": _of(
        "Qwen3VL",
        {},
        text_config={**HEADS, "rope_parameters": MROPE},
        vision_config=dict(QWEN_VISION),
        image_token_id=90,
        video_token_id=91,
        vision_start_token_id=92,
        vision_end_token_id=93,
    ),
}
"""Name in the table to what makes its configuration."""
REFUSED: dict[str, Callable[[], hf.PreTrainedConfig]] = {
    "bert": _of("Bert", OWN_HEADS, is_decoder=False),
    "t5": _of("T5", {**IDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}),
    "modernbert-decoder": _of("ModernBertDecoder", OWN_HEADS, local_attention=4),
    "xlnet": _of("XLNet", {**IDS, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
}
"""What no layout can honour; loading says why."""


_LEAST_SPREAD = 1e-3


def random_model(name: str, *, seed: int = 0, spread: float = 4.0) -> hf.PreTrainedModel:
    """Return a model of random weights, of the class its publisher's files would have.

    ``spread`` multiplies the initial matrices, so that attention is not uniform. Embeddings that
    begin at almost nothing (RWKV's, at 1e-4) get the size of the others': a step of Adam, ten times
    as large, would make another model of one whose layers normalise them.
    """
    torch.manual_seed(seed)
    config = {**ARCHITECTURES, **REFUSED}[name]()
    kinds = (hf.AutoModelForImageTextToText, hf.AutoModelForCausalLM, hf.AutoModelForSeq2SeqLM)
    composite = config.get_text_config() is not config
    kind = next(
        kind for kind in (kinds if composite else kinds[1:]) if type(config) in kind._model_mapping
    )
    model: hf.PreTrainedModel = kind.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(spread)
        embeddings = model.get_input_embeddings().weight
        if embeddings.std() < _LEAST_SPREAD:
            embeddings.mul_(0.02 * spread / embeddings.std())
    return model.eval()
