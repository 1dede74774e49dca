"""A tiny model with random weights of every family that the JAX loop knows."""

from typing import Any

import torch
from tiny import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = len(byte_tokenizer())
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_WINDOW = {"sliding_window": 5}
_QWEN = _WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
# By name: the model_type, and its settings beside the common ones.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied, one key a query": (
        "llama",
        {"tie_word_embeddings": True, "num_key_value_heads": 4},
    ),
    "llama, all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 scaling": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, linear scaling": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
    "llama, gelu": ("llama", {"hidden_act": "gelu"}),
    "mistral": ("mistral", _WINDOW),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", _QWEN),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, biases, windows": ("qwen3", _QWEN | {"attention_bias": True}),
    "gemma": ("gemma", {"num_key_value_heads": 1}),
    "gemma2": ("gemma2", _WINDOW | {"query_pre_attn_scalar": 12}),
    "gemma2, caps that bite": (
        "gemma2",
        _WINDOW | {"attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.3},
    ),
    "gemma3_text": ("gemma3_text", _WINDOW | {"sliding_window_pattern": 3}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
}


def tiny_family(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of a variant, evaluated; biases and norms are random too, as in a trained model."""
    model_type, settings = VARIANTS[name]
    common = _GPT2 if model_type == "gpt2" else _COMMON
    config = AutoConfig.for_model(model_type, **(common | settings | changes))
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 0.15
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()
