"""The layers of a decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from amidmath.integrations.jax_loop.models.decoder_config import Activation, DecoderConfig
from amidmath.integrations.jax_loop.models.lora import LowRank

Axes: TypeAlias = tuple[str | None, ...]

_ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclass(frozen=True)
class Initialiser:
    """Makes parameters, by their leading axis, their dtype, and their random numbers."""

    rngs: nnx.Rngs
    dtype: DTypeLike
    deviation: float
    layers: int | None = None

    def normal(self, shape: tuple[int, ...], axes: Axes) -> nnx.Param[jax.Array]:
        """A parameter of random numbers around 0."""
        shape, axes = self._stacked(shape, axes)
        draw = jax.random.normal(self.rngs.params(), shape, self.dtype) * self.deviation
        return nnx.Param(draw.astype(self.dtype), axes=axes)

    def full(self, shape: tuple[int, ...], axes: Axes, value: float) -> nnx.Param[jax.Array]:
        """A parameter that has one value everywhere."""
        shape, axes = self._stacked(shape, axes)
        return nnx.Param(jnp.full(shape, value, self.dtype), axes=axes)

    def _stacked(self, shape: tuple[int, ...], axes: Axes) -> tuple[tuple[int, ...], Axes]:
        return (shape, axes) if self.layers is None else ((self.layers, *shape), ("layer", *axes))


class Norm(nnx.Module):
    """RMS norm or layer norm over the last axis, in float32."""

    def __init__(
        self, make: Initialiser, config: DecoderConfig, width: int, axis: str | None
    ) -> None:
        """Weights that leave the normalised input as it is."""
        self.kind, self.epsilon = config.norm, config.epsilon
        start = 0.0 if config.norm == "rms_plus_one" else 1.0
        self.weight = make.full((width,), (axis,), start)
        self.bias = make.full((width,), (axis,), 0.0) if config.norm == "layer" else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """The normalised input, in its dtype."""
        wide = x.astype(jnp.float32)
        if self.kind == "layer":
            wide = wide - wide.mean(-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        weight = self.weight[...].astype(jnp.float32)
        wide = wide * (1.0 + weight if self.kind == "rms_plus_one" else weight)
        if self.bias is not None:
            wide = wide + self.bias[...].astype(jnp.float32)
        return wide.astype(x.dtype)


class Linear(nnx.Module):
    """An einsum with a weight that has its inputs first, and perhaps a bias, kept flat."""

    def __init__(
        self, make: Initialiser, equation: str, shape: tuple[int, ...], axes: Axes, *, bias: bool
    ) -> None:
        """Make the weight, and the bias if there is one."""
        self.equation = equation
        self.weight = make.normal(shape, axes)
        outputs = 1 if axes[0] != "embed" else len(axes) - 1
        width = math.prod(shape[-outputs:])
        self.bias = make.full((width,), (axes[-outputs],), 0.0) if bias else None
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The outputs (B, T, …), computed in the input's dtype."""
        y = jnp.einsum(self.equation, x, self.weight[...].astype(x.dtype))
        if self.lora is not None:
            y = y + self.lora(x)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype).reshape(y.shape[2:])
        return y


class Layers(nnx.Module):
    """The parameters of all layers, stacked; a slice of them is one layer."""

    def __init__(self, make: Initialiser, config: DecoderConfig) -> None:
        """Make what the config asks for; other parts are None."""
        c = config
        self.config = c
        heads: Axes = ("embed", "heads", None)
        kv: Axes = ("embed", "kv", None)
        kv_shape = (c.hidden, c.kv_heads, c.head_dim)
        self.attention_norm = Norm(make, c, c.hidden, "embed")
        self.query = Linear(
            make, "bth,hnd->btnd", (c.hidden, c.heads, c.head_dim), heads, bias=c.qkv_bias
        )
        self.key = Linear(make, "bth,hnd->btnd", kv_shape, kv, bias=c.qkv_bias)
        self.value = Linear(make, "bth,hnd->btnd", kv_shape, kv, bias=c.qkv_bias)
        self.output = Linear(
            make,
            "btnd,ndh->bth",
            (c.heads, c.head_dim, c.hidden),
            ("heads", None, "embed"),
            bias=c.output_bias,
        )
        self.query_norm = Norm(make, c, c.head_dim, None) if c.qk_norm else None
        self.key_norm = Norm(make, c, c.head_dim, None) if c.qk_norm else None
        self.attention_post_norm = Norm(make, c, c.hidden, "embed") if c.post_norms else None

        into, inside = (c.hidden, c.intermediate), c.mlp_bias
        self.mlp_norm = Norm(make, c, c.hidden, "embed")
        self.gate = (
            Linear(make, "bth,hm->btm", into, ("embed", "mlp"), bias=inside) if c.gated else None
        )
        self.up = Linear(make, "bth,hm->btm", into, ("embed", "mlp"), bias=inside)
        self.down = Linear(make, "btm,mh->bth", into[::-1], ("mlp", "embed"), bias=inside)
        self.mlp_post_norm = Norm(make, c, c.hidden, "embed") if c.post_norms else None

    def heads(
        self, x: jax.Array, angles: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values of one layer, (B, T, heads, head_dim)."""
        x = self.attention_norm(x)
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if angles is not None:
            query, key = _rotated(query, angles), _rotated(key, angles)
        return query, key, value

    def rest(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output, from its input and what its heads attended to."""
        out = self.output(attended)
        if self.attention_post_norm is not None:
            out = self.attention_post_norm(out)
        x = x + out
        out = self.mlp_norm(x)
        inside = self.up(out)
        activation = _ACTIVATIONS[self.config.activation]
        inside = activation(inside) if self.gate is None else activation(self.gate(out)) * inside
        out = self.down(inside)
        if self.mlp_post_norm is not None:
            out = self.mlp_post_norm(out)
        return x + out


def _rotated(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotary embedding of (B, T, heads, head_dim) by angles (B, T, head_dim / 2), in float32."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x.dtype)
