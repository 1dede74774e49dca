"""Model families: what their config.json means, and what their weights are called.

A family is one entry of ``FAMILIES``: how its configuration becomes a
:class:`~.decoder_config.DecoderConfig`, and a table of tensors that serves both ways. Every setting
of a configuration is read, or known not to matter to the logits, or refused; so a model is never
silently another.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from amidmath.integrations.jax_loop.decoder_config import (
    Activation,
    DecoderConfig,
    Llama3Scaling,
    Rotary,
)
from amidmath.integrations.shared.errors import InputError

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


@dataclass(frozen=True)
class Tensor:
    """One tensor of a Hugging Face file (with "{}" in its name, one of each layer).

    Args:
        name: its name.
        paths: the parameters of :class:`~.decoder.Decoder` that it holds, side by side along the
            outputs.
        kind: a vector, or a matrix with its inputs or its outputs first.
    """

    name: str
    paths: tuple[str, ...]
    kind: Literal["vector", "inputs_first", "outputs_first"]

    @property
    def per_layer(self) -> bool:
        """Whether there is one of each layer."""
        return "{}" in self.name

    def shape(
        self, parts: Sequence[tuple[int, ...]], axes: Sequence[str | None]
    ) -> tuple[int, ...]:
        """Its shape, from the shapes of its parameters in one layer and the axes of the first."""
        flat = [self._flat(part, axes) for part in parts]
        joined = (*flat[0][:-1], sum(part[-1] for part in flat))
        return joined[::-1] if self.kind == "outputs_first" else joined

    def split(
        self, tensor: NDArray[Any], parts: Sequence[tuple[int, ...]], axes: Sequence[str | None]
    ) -> list[NDArray[Any]]:
        """Its parameters."""
        tensor = tensor.T if self.kind == "outputs_first" else tensor
        ends = np.cumsum([self._flat(part, axes)[-1] for part in parts])[:-1]
        pieces = np.split(tensor, ends, axis=-1)
        return [piece.reshape(part) for piece, part in zip(pieces, parts, strict=True)]

    def join(self, parts: Sequence[NDArray[Any]], axes: Sequence[str | None]) -> NDArray[Any]:
        """The tensor, of its parameters."""
        flat = [part.reshape(self._flat(part.shape, axes)) for part in parts]
        joined = flat[0] if len(flat) == 1 else np.concatenate(flat, axis=-1)
        return np.ascontiguousarray(joined.T if self.kind == "outputs_first" else joined)

    def _flat(self, part: tuple[int, ...], axes: Sequence[str | None]) -> tuple[int, ...]:
        """The shape of a parameter whose inputs, and whose outputs, are one axis each."""
        if self.kind == "vector":
            return (prod(part),)
        if axes[0] == "embed":  # the hidden states go in
            return (part[0], prod(part[1:]))
        return (prod(part[:-1]), part[-1])


@dataclass(frozen=True)
class Family:
    """How one model_type is read and written.

    Args:
        read: its configuration as a DecoderConfig.
        tensors: all that it may have; those whose parameters a decoder lacks are not in its files.
        prefix: of the backbone's names, which some files leave out.
        architecture: the class in transformers.
        ignored: ends of names in files that are no weights.
    """

    read: Callable[["Settings"], DecoderConfig]
    tensors: tuple[Tensor, ...]
    prefix: str
    architecture: str
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)


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


def read_config(config: PreTrainedConfig) -> DecoderConfig:
    """The shape of a model.

    Raises:
        InputError: a family that is not in FAMILIES, or a setting that is not supported.
    """
    settings = Settings(config)
    found = family(config.model_type).read(settings)
    settings.refuse_others()
    return found


def family(model_type: object) -> Family:
    """The family of this name; raises InputError if there is none."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"its model_type {model_type!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def _differs(value: object, default: object) -> bool:
    """Whether a setting says something; False, 0, None and an empty list say nothing."""
    if default is MISSING:
        return value is not None
    return value != default and not (not value and not default)


def _llama(s: Settings) -> DecoderConfig:
    biased = bool(s.take("attention_bias"))
    return _decoder(s, qkv_bias=biased, output_bias=biased, mlp_bias=bool(s.take("mlp_bias")))


def _mistral(s: Settings) -> DecoderConfig:
    windows = (s.take("sliding_window"),) * s.take("num_hidden_layers")
    return _decoder(s, windows=windows)


def _qwen2(s: Settings) -> DecoderConfig:
    return _decoder(s, windows=_windows(s), qkv_bias=True)


def _qwen3(s: Settings) -> DecoderConfig:
    biased = bool(s.take("attention_bias"))
    return _decoder(s, windows=_windows(s), qkv_bias=biased, output_bias=biased, qk_norm=True)


def _gemma(s: Settings, **others: Any) -> DecoderConfig:
    biased = bool(s.take("attention_bias"))
    return _decoder(
        s,
        norm="rms_plus_one",
        embedding_scale=s.take("hidden_size") ** 0.5,
        qkv_bias=biased,
        output_bias=biased,
        **others,
    )


def _gemma2(s: Settings) -> DecoderConfig:
    return _gemma(
        s,
        windows=_windows(s),
        post_norms=True,
        query_scale=s.take("query_pre_attn_scalar") ** -0.5,
        attention_softcap=s.take("attn_logit_softcapping"),
        final_softcap=s.take("final_logit_softcapping"),
    )


def _gemma3(s: Settings) -> DecoderConfig:
    ropes = s.take("rope_parameters")
    rotary = {kind: _rotary(ropes.get(kind)) for kind in ("sliding_attention", "full_attention")}
    return _gemma(
        s,
        windows=_windows(s),
        rotaries=tuple(rotary[kind] for kind in s.take("layer_types")),
        post_norms=True,
        qk_norm=True,
        query_scale=s.take("query_pre_attn_scalar") ** -0.5,
        final_softcap=s.take("final_logit_softcapping"),
    )


def _gpt2(s: Settings) -> DecoderConfig:
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
    """What the families since Llama have in common, and what one has besides."""
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


def _named(
    names: Mapping[str, str], kind: Literal["inputs_first", "outputs_first"]
) -> Iterable[Tensor]:
    """Weights and biases of linear layers."""
    for ours, theirs in names.items():
        yield Tensor(f"{theirs}.weight", (f"{ours}.weight",), kind)
        yield Tensor(f"{theirs}.bias", (f"{ours}.bias",), "vector")


def _vectors(names: Mapping[str, str]) -> Iterable[Tensor]:
    """Weights and biases of norms."""
    for ours, theirs in names.items():
        yield Tensor(f"{theirs}.weight", (f"{ours}.weight",), "vector")
        yield Tensor(f"{theirs}.bias", (f"{ours}.bias",), "vector")


_HEAD = Tensor("lm_head.weight", ("output_head",), "inputs_first")
_LAYER = "model.layers.{}"


def _since_llama(norms: dict[str, str]) -> tuple[Tensor, ...]:
    """The tensors of the families since Llama, whose names differ for norms only."""
    linear = {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    all_norms = norms | {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}
    return (
        Tensor("model.embed_tokens.weight", ("embedding",), "inputs_first"),
        *_named(
            {f"layers.{ours}": f"{_LAYER}.{theirs}" for ours, theirs in linear.items()},
            "outputs_first",
        ),
        *_vectors({f"layers.{ours}": f"{_LAYER}.{theirs}" for ours, theirs in all_norms.items()}),
        *_vectors({"norm": "model.norm"}),
        _HEAD,
    )


_LLAMA = _since_llama({"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"})
_GEMMA2 = _since_llama(
    {
        "attention_norm": "input_layernorm",
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    }
)
_FUSED = ("layers.query", "layers.key", "layers.value")
_GPT2 = (
    Tensor("transformer.wte.weight", ("embedding",), "inputs_first"),
    Tensor("transformer.wpe.weight", ("position_embedding",), "inputs_first"),
    Tensor(
        "transformer.h.{}.attn.c_attn.weight",
        tuple(f"{path}.weight" for path in _FUSED),
        "inputs_first",
    ),
    Tensor("transformer.h.{}.attn.c_attn.bias", tuple(f"{path}.bias" for path in _FUSED), "vector"),
    *_named(
        {
            "layers.output": "transformer.h.{}.attn.c_proj",
            "layers.up": "transformer.h.{}.mlp.c_fc",
            "layers.down": "transformer.h.{}.mlp.c_proj",
        },
        "inputs_first",
    ),
    *_vectors(
        {
            "layers.attention_norm": "transformer.h.{}.ln_1",
            "layers.mlp_norm": "transformer.h.{}.ln_2",
            "norm": "transformer.ln_f",
        }
    ),
    _HEAD,
)

FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, _LLAMA, "model.", "LlamaForCausalLM"),
    "mistral": Family(_mistral, _LLAMA, "model.", "MistralForCausalLM"),
    "qwen2": Family(_qwen2, _LLAMA, "model.", "Qwen2ForCausalLM"),
    "qwen3": Family(_qwen3, _LLAMA, "model.", "Qwen3ForCausalLM"),
    "gemma": Family(_gemma, _LLAMA, "model.", "GemmaForCausalLM"),
    "gemma2": Family(_gemma2, _GEMMA2, "model.", "Gemma2ForCausalLM"),
    "gemma3_text": Family(_gemma3, _GEMMA2, "model.", "Gemma3ForCausalLM"),
    "gpt2": Family(
        _gpt2,
        _GPT2,
        "transformer.",
        "GPT2LMHeadModel",
        (".attn.bias", ".attn.masked_bias"),  # its causal mask
    ),
}
