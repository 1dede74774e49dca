"""A tiny model with random weights of any family of transformers that has a causal LM."""

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

# Sizes by the names that configurations have for them; a family takes those that it knows.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("emb_dim", "embedding_size", "embed_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "kv_channels", "d_kv", "attention_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_ff", "dff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "feed_forward_hidden_size"), 48),
    "shared_intermediate_size": 48,
    "is_decoder": True,
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "expert_dim"), 16),
    **dict.fromkeys(("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("num_shared_experts", "n_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), 128),
    "context_length": 128,
    "max_sequence_length": 128,
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    "attention_hidden_size": 32,
    "lru_width": 32,
    "state_size": 8,
    "mamba_d_state": 8,
    "sliding_window": 64,
    "attention_window_size": 64,
    "rotary_dim": 8,
}


def tiny_config(family: str, vocabulary: int, **changes: Any) -> Any:
    """The family's configuration with small sizes, some of which have to fit together."""
    kind = CONFIG_MAPPING[family]
    known = set(inspect.signature(kind.__init__).parameters) | set(
        getattr(kind, "__dataclass_fields__", {})
    )
    if "text_config" in known and family not in PLAIN:
        raise ValueError("its text model is a part of a model of pictures or sounds")
    sizes = {name: value for name, value in SIZES.items() if name in known}
    special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    settings = sizes | special | {"vocab_size": vocabulary} | OWN.get(family, {}) | changes
    return AutoConfig.for_model(family, **{k: v for k, v in settings.items() if v is not ...})


PLAIN: set[str] = set()
OWN: dict[str, dict[str, Any]] = {}


def tiny_causal(
    family: str, vocabulary: int = 384, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A model of the family, evaluated, with weights that are large enough to matter."""
    config = tiny_config(family, vocabulary, **changes)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()
