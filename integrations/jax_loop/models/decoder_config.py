"""The shape of a decoder: what a config.json says, in terms that are the same for all families."""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class Llama3Scaling:
    """The stretching of Llama 3.1's rotary embeddings.

    Wavelengths above ``context / low`` are multiplied by ``factor``, those below ``context / high``
    kept, and what lies between is interpolated. Source: transformers,
    ``_compute_llama3_parameters``.

    Args:
        factor: of the long wavelengths.
        low: ``low_freq_factor``.
        high: ``high_freq_factor``.
        context: ``original_max_position_embeddings``.
    """

    factor: float
    low: float
    high: float
    context: float


@dataclass(frozen=True)
class Rotary:
    """Rotary position embeddings over the whole head, halves rotated against each other.

    Args:
        theta: the base of the wavelengths.
        scaling: Llama 3's, or a number by which all positions are divided.
    """

    theta: float
    scaling: Llama3Scaling | float = 1.0

    def frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Angle per position, (head_dim / 2,), computed in float32 as transformers does."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain: NDArray[np.float32] = (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)
        scaling = self.scaling
        if not isinstance(scaling, Llama3Scaling):
            return np.asarray(plain / np.float32(scaling), np.float32)
        turns = np.float32(scaling.context) * plain / np.float32(2 * math.pi)
        smooth = (turns - scaling.low) / (scaling.high - scaling.low)
        share = np.clip(smooth, 0.0, 1.0).astype(np.float32)
        mixed = (1 - share) * plain / np.float32(scaling.factor) + share * plain
        return np.asarray(mixed, np.float32)


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    Args:
        vocabulary: tokens that it knows.
        hidden: width of the hidden states.
        layers: their number.
        heads: of the queries.
        kv_heads: of keys and values; divides ``heads``.
        head_dim: width of a head.
        intermediate: width inside of the MLP.
        context: the longest sequence that it was made for.
        norm: RMS norm, RMS norm whose weight is added to 1, or layer norm with a bias.
        epsilon: of the norms.
        activation: of the MLP; gelu_tanh is GPT-2's approximation.
        gated: whether the MLP multiplies by a gate.
        qkv_bias: whether queries, keys and values have biases.
        output_bias: whether the output of attention has.
        mlp_bias: whether the MLP has.
        qk_norm: whether queries and keys are normalised, head by head.
        post_norms: whether the outputs of attention and MLP are normalised too.
        rotaries: rotary embeddings, one a layer; empty for learned positions.
        windows: how many positions, its own included, a token sees in each layer; None for all.
        embedding_scale: what embeddings are multiplied by.
        query_scale: what scores are multiplied by.
        attention_softcap: soft cap of the scores.
        final_softcap: soft cap of the logits.
        tied: whether the head is the embedding.
        initializer_range: standard deviation of fresh weights.
    """

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    context: int
    norm: Literal["rms", "rms_plus_one", "layer"]
    epsilon: float
    activation: Activation
    gated: bool
    rotaries: tuple[Rotary, ...]
    windows: tuple[int | None, ...]
    query_scale: float
    tied: bool
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        """Check what the layers rely on."""
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads = {self.heads}, got {self.kv_heads}")
        if len(self.windows) != self.layers:
            raise ValueError(
                f"windows must have one entry a layer ({self.layers}), got {len(self.windows)}"
            )
        if len(self.rotaries) not in (0, self.layers):
            raise ValueError(
                f"rotaries must be empty or have one entry a layer ({self.layers}), got "
                f"{len(self.rotaries)}"
            )
