"""The meaning of each model family's config.json: one function of its settings each.

Every setting is read, or known not to matter to the logits, or refused; so a model is never
silently another.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from transformers import PreTrainedConfig

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.models.decoder_config import (
    Activation,
    DecoderConfig,
    Llama3Scaling,
    Rotary,
)

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
# What does not change the logits of a model that is evaluated. Dropout is left out in training too.
_NEUTRAL = {
    "attention_dropout",
    "attn_pdrop",
    "bos_token_id",
    "embd_pdrop",
    "eos_token_id",
    "max_window_layers",  # layer_types says the same
    "pad_token_id",
    "pretraining_tp",
    "reorder_and_upcast_attn",
    "resid_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "use_cache",
    "use_sliding_window",  # sliding_window is None without it
    *(field.name for field in fields(PreTrainedConfig) if field.name != "is_encoder_decoder"),
}
# Settings of other models. Transformers would ignore them here, but who wrote them meant something.
_FOREIGN = (
    "attention_chunk_size",
    "attention_multiplier",
    "clip_qkv",
    "embedding_multiplier",
    "is_encoder_decoder",
    "kv_lora_rank",
    "layer_types",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "n_routed_experts",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "output_multiplier",
    "partial_rotary_factor",
    "quantization_config",
    "residual_multiplier",
    "rope_interleaved",
    "sliding_window",
    "use_parallel_residual",
)


class Settings:
    """A configuration that knows which of its settings have been read."""

    def __init__(self, config: PreTrainedConfig) -> None:
        """Nothing is read yet."""
        self._config = config
        self._read: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """A setting's value, or what stands for None and for a setting that is not there."""
        self._read.add(name)
        value = getattr(self._config, name, None)
        return default if value is None else value

    def refuse_others(self) -> None:
        """Raise InputError for a setting that was not read and may matter."""
        ours = {field.name: field.default for field in fields(self._config)}
        for name, default in ours.items():
            value = getattr(self._config, name)
            if name not in self._read | _NEUTRAL and _differs(value, default):
                raise InputError(f"its setting {name} = {value!r} is not supported")
        for name in _FOREIGN:
            value = getattr(self._config, name, None)
            if name not in self._read and _differs(value, None):
                raise InputError(f"its setting {name} = {value!r} is not supported")


def _differs(value: object, default: object) -> bool:
    """Whether a setting says something; False, 0, None and an empty list say nothing."""
    if default is MISSING:
        return value is not None
    return value != default and not (not value and not default)


def llama(s: Settings) -> DecoderConfig:
    """Llama, SmolLM2."""
    biased = bool(s.take("attention_bias"))
    return _decoder(s, qkv_bias=biased, output_bias=biased, mlp_bias=bool(s.take("mlp_bias")))


def mistral(s: Settings) -> DecoderConfig:
    """Mistral: a window in every layer."""
    windows = (s.take("sliding_window"),) * s.take("num_hidden_layers")
    return _decoder(s, windows=windows)


def qwen2(s: Settings) -> DecoderConfig:
    """Qwen 2 and 2.5: biased queries, keys and values."""
    return _decoder(s, windows=_windows(s), qkv_bias=True)


def qwen3(s: Settings) -> DecoderConfig:
    """Qwen 3: normalised queries and keys."""
    biased = bool(s.take("attention_bias"))
    return _decoder(s, windows=_windows(s), qkv_bias=biased, output_bias=biased, qk_norm=True)


def gemma(s: Settings, **others: Any) -> DecoderConfig:
    """Gemma, and what the later ones share with it."""
    biased = bool(s.take("attention_bias"))
    return _decoder(
        s,
        norm="rms_plus_one",
        embedding_scale=s.take("hidden_size") ** 0.5,
        qkv_bias=biased,
        output_bias=biased,
        **others,
    )


def gemma2(s: Settings) -> DecoderConfig:
    """Gemma 2: soft caps, windows in every other layer, norms after each part."""
    return gemma(
        s,
        windows=_windows(s),
        post_norms=True,
        query_scale=s.take("query_pre_attn_scalar") ** -0.5,
        attention_softcap=s.take("attn_logit_softcapping"),
        final_softcap=s.take("final_logit_softcapping"),
    )


def gemma3(s: Settings) -> DecoderConfig:
    """Gemma 3, text only: two rotary embeddings."""
    ropes = s.take("rope_parameters")
    rotary = {kind: _rotary(ropes.get(kind)) for kind in ("sliding_attention", "full_attention")}
    return gemma(
        s,
        windows=_windows(s),
        rotaries=tuple(rotary[kind] for kind in s.take("layer_types")),
        post_norms=True,
        qk_norm=True,
        query_scale=s.take("query_pre_attn_scalar") ** -0.5,
        final_softcap=s.take("final_logit_softcapping"),
    )


def gpt2(s: Settings) -> DecoderConfig:
    """GPT-2: learned positions, layer norms."""
    hidden, heads, layers = s.take("n_embd"), s.take("n_head"), s.take("n_layer")
    head_dim = hidden // heads
    return DecoderConfig(
        vocabulary=s.take("vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        intermediate=s.take("n_inner", 4 * hidden),
        context=s.take("n_positions"),
        norm="layer",
        epsilon=s.take("layer_norm_epsilon"),
        activation=_activation(s.take("activation_function")),
        gated=False,
        rotaries=(),
        windows=(None,) * layers,
        query_scale=head_dim**-0.5 if s.take("scale_attn_weights") else 1.0,
        tied=bool(s.take("tie_word_embeddings")),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        initializer_range=s.take("initializer_range"),
    )


def _decoder(s: Settings, **others: Any) -> DecoderConfig:
    """The settings that the families since Llama share, and those that one has besides."""
    hidden, heads, layers = (
        s.take(name) for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    head_dim = s.take("head_dim", hidden // heads)
    if "rotaries" not in others:
        others["rotaries"] = (_rotary(s.take("rope_parameters")),) * layers
    common = {
        "norm": "rms",
        "windows": (None,) * layers,
        "query_scale": head_dim**-0.5,
    }
    return DecoderConfig(
        vocabulary=s.take("vocab_size"),
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=s.take("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate=s.take("intermediate_size"),
        context=s.take("max_position_embeddings"),
        epsilon=s.take("rms_norm_eps"),
        activation=_activation(s.take("hidden_activation") or s.take("hidden_act")),
        gated=True,
        tied=bool(s.take("tie_word_embeddings")),
        initializer_range=s.take("initializer_range"),
        **(common | others),
    )


def _activation(name: object) -> Activation:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise InputError(
            f"its activation {name!r} is not supported; supported are {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _windows(s: Settings) -> tuple[int | None, ...]:
    """The window of each layer, of layer_types."""
    size, kinds = s.take("sliding_window"), s.take("layer_types")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise InputError(f"its layer_types have {kind!r}, which is not supported")
        if kind == "sliding_attention" and size is None:
            raise InputError("its layer_types have sliding_attention, but sliding_window is None")
    return tuple(size if kind == "sliding_attention" else None for kind in kinds)


def _rotary(parameters: Mapping[str, Any] | None) -> Rotary:
    known: dict[str, tuple[str, ...]] = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    rope = dict(parameters or {})
    kind, theta = rope.pop("rope_type", None), rope.pop("rope_theta", None)
    if rope.pop("type", kind) != kind or kind not in known:
        raise InputError(
            f"its rope_parameters {parameters!r} are not supported: rope_type must be one of "
            f"{', '.join(known)}"
        )
    if rope.get("partial_rotary_factor") == 1.0:
        del rope["partial_rotary_factor"]
    values = [rope.pop(name, None) for name in known[kind]]
    if rope or theta is None or None in values:
        raise InputError(
            f"its rope_parameters {parameters!r} are not supported: those of type {kind} are "
            f"{', '.join(('rope_theta', *known[kind]))}"
        )
    numbers = [float(value) for value in values]
    if kind == "llama3":
        return Rotary(float(theta), Llama3Scaling(*numbers))
    return Rotary(float(theta), *numbers)
