"""What makes a family's configuration small, and what some need beside that."""

from typing import Any

_BY_SIZE: dict[int, tuple[str, ...]] = {
    384: ("vocab_size_per_layer_input",),
    32: (
        *("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim", "embedding_size"),
        *("model_dim", "emb_dim", "lru_width", "hidden_size_per_layer_input", "embedding_dim"),
    ),
    48: (
        *("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size"),
        *("shared_expert_intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "dff"),
        *("shared_intermediate_size", "moe_shared_expert_intermediate_size"),
        *("intermediate_size_mlp", "dense_intermediate_size", "expert_ffn_hidden_size"),
    ),
    2: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
        *("decoder_layers", "num_decoder_layers", "num_encoder_layers"),
        *("num_key_value_heads", "n_head_kv", "num_kv_heads", "attention_kv_heads"),
        *("num_experts_per_tok", "moe_topk", "num_experts_per_token", "moe_k", "top_k_experts"),
        "linear_num_key_heads",
    ),
    4: (
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"),
        *("decoder_attention_heads", "num_local_experts", "num_experts", "n_routed_experts"),
        *("moe_num_experts", "linear_num_value_heads", "linear_num_heads"),
    ),
    8: (
        *("head_dim", "attention_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"),
        *("d_kv", "global_head_dim", "linear_key_head_dim", "linear_value_head_dim"),
        "linear_head_dim",
    ),
    16: ("q_lora_rank", "kv_lora_rank", "o_lora_rank", "mamba_d_state", "state_size"),
    128: (
        *("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "n_ctx"),
        "max_sequence_length",
    ),
    1: ("n_group", "topk_group"),
}
SIZES: dict[str, int] = {name: size for size, names in _BY_SIZE.items() for name in names}

# Keys and values of latent attention are those of every head.
_LATENT = {"qk_head_dim": 16, "num_key_value_heads": 4}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_ROTARY = {"rotary_dim": 4}
_HEADS = {"head_dim": 8}
_DECODER = {"is_decoder": True}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8}

SETTINGS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note"),
            *("dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3"),
            "youtu",
        ),
        _LATENT,
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LINEAR),
    **dict.fromkeys(("codegen", "gptj"), _ROTARY),
    **dict.fromkeys(
        (
            *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra"),
            *("ernie", "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roformer"),
            *("xlm-roberta", "xlm-roberta-xl"),
        ),
        _DECODER,
    ),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), _HEADS),
    "bailing_hybrid": _LINEAR | _LATENT,
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "gemma3n_text": {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": _MAMBA2 | _LINEAR,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR | _LATENT,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "indexed_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": _DECODER | {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "roc_bert": _DECODER
    | {
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 10,
        "shape_embed_dim": 8,
        "shape_vocab_size": 10,
    },
    "xlstm": {"mlstm_round_up_to_multiple_of": 8, "ffn_round_up_to_multiple_of": 8},
    "xmod": _DECODER | {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}
