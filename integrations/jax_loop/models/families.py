"""Model families: what their config.json means, and what their weights are called.

A family is one entry of ``FAMILIES``: how its configuration becomes a
:class:`~.decoder_config.DecoderConfig` (a function of ``family_settings``), and a table of tensors
that serves both ways.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.models import family_settings
from amidmath.integrations.jax_loop.models.decoder_config import DecoderConfig
from amidmath.integrations.jax_loop.models.family_settings import Settings


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
    """The reading and writing of one model_type.

    Args:
        read: its configuration as a DecoderConfig.
        tensors: all that it may have; those whose parameters a decoder lacks are not in its files.
        prefix: of the backbone's names, which some files leave out.
        architecture: the class in transformers.
        ignored: ends of names in files that are no weights.
        adapted: the modules of its layers that LoRA adapts where nothing is said.
    """

    read: Callable[[Settings], DecoderConfig]
    tensors: tuple[Tensor, ...]
    prefix: str
    architecture: str
    ignored: tuple[str, ...] = (".rotary_emb.inv_freq",)
    adapted: tuple[str, ...] = ("q_proj", "v_proj")


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
    "llama": Family(family_settings.llama, _LLAMA, "model.", "LlamaForCausalLM"),
    "mistral": Family(family_settings.mistral, _LLAMA, "model.", "MistralForCausalLM"),
    "qwen2": Family(family_settings.qwen2, _LLAMA, "model.", "Qwen2ForCausalLM"),
    "qwen3": Family(family_settings.qwen3, _LLAMA, "model.", "Qwen3ForCausalLM"),
    "gemma": Family(family_settings.gemma, _LLAMA, "model.", "GemmaForCausalLM"),
    "gemma2": Family(family_settings.gemma2, _GEMMA2, "model.", "Gemma2ForCausalLM"),
    "gemma3_text": Family(family_settings.gemma3, _GEMMA2, "model.", "Gemma3ForCausalLM"),
    "gpt2": Family(
        family_settings.gpt2,
        _GPT2,
        "transformer.",
        "GPT2LMHeadModel",
        (".attn.bias", ".attn.masked_bias"),  # its causal mask
        ("c_attn",),
    ),
}
