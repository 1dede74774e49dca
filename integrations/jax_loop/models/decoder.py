"""One decoder-only language model in Flax NNX for every family in :mod:`.families`.

It is our own because no kept library has these models with hidden states before the head, the
settings of a config.json, and a way back to the Hugging Face format; docs/jax-models.md has what
was looked at.

Every parameter of the layers has a leading axis of layers, and one ``jax.lax.scan`` runs them, so
that compiling takes as long for 80 layers as for two. What differs between layers (the reach of
attention, the rotary frequencies) is an array that is scanned over too.

Weights are kept in ``param_dtype`` and cast where they are used; matrix products are computed in
``dtype``; norms, rotary embeddings and the softmax in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

import amidmath as am
from amidmath.integrations.jax_loop.devices.mesh import look_up
from amidmath.integrations.jax_loop.models.decoder_config import DecoderConfig
from amidmath.integrations.jax_loop.models.layers import Initialiser, Layers, Norm

# A layer without a window reaches back farther than any sequence.
_NO_WINDOW = np.iinfo(np.int32).max


class Cache(NamedTuple):
    """Keys and values of the tokens so far, for :meth:`Decoder.extend`.

    Args:
        keys: shape (layers, B, S, kv_heads, head_dim).
        values: likewise.
        segments: shape (B, S): 1 for a token, 0 for padding and for what is still free.
        length: how many of the S slots are taken; the same for all rows.
    """

    keys: jax.Array
    values: jax.Array
    segments: jax.Array
    length: jax.Array


class Decoder(nnx.Module):
    """A causal language model: hidden states, and the head that makes logits of them.

    Every parameter has metadata ``axes``: for each of its axes "layer", "embed", "heads", "kv",
    "mlp", "vocab" or None, for a mesh to map.

    Args:
        config: its shape.
        rngs: of the fresh weights.
        dtype: what it computes in.
        param_dtype: of the weights.
        remat: compute the layers again in the backward pass instead of keeping what is inside.

    Attributes:
        mesh: the devices that the parameters have been put on, by their axes; None for one device.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from amidmath.integrations.jax_loop.models.decoder_config import Rotary
        >>> config = DecoderConfig(
        ...     vocabulary=11, hidden=8, layers=2, heads=2, kv_heads=1, head_dim=4, intermediate=16,
        ...     context=32, norm="rms", epsilon=1e-6, activation="silu", gated=True, tied=True,
        ...     rotaries=(Rotary(1e4),) * 2, windows=(None, None), query_scale=0.5)
        >>> decoder = Decoder(config, rngs=nnx.Rngs(0))
        >>> decoder.states(jnp.zeros((1, 5), jnp.int32)).shape, decoder.head().weight.shape
        ((1, 5, 8), (11, 8))
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool = False,
    ) -> None:
        """See the class; under ``nnx.eval_shape`` no weight is made."""
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        self.mesh: Mesh | None = None
        make = Initialiser(rngs, param_dtype, config.initializer_range)
        table = (config.vocabulary, config.hidden)
        self.embedding = make.normal(table, ("vocab", "embed"))
        self.position_embedding = (
            None if config.rotaries else make.normal((config.context, table[1]), (None, "embed"))
        )
        stacked = Initialiser(rngs, param_dtype, config.initializer_range, config.layers)
        self.layers = Layers(stacked, config)
        self.norm = Norm(make, config, config.hidden, "embed")
        self.output_head = None if config.tied else make.normal(table, ("vocab", "embed"))

    def states(
        self,
        ids: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """The hidden states after the last norm, (B, T, hidden), in ``dtype``.

        Args:
            ids: tokens, (B, T); one that is not in the vocabulary makes its row NaN.
            segments: (B, T): 0 for padding, and a number for each document, whose tokens lie side
                by side; a token sees those before it in its own. None: each row is one document.
            positions: (B, T), of each token in its document; counted from the segments if None.
        """
        if positions is None:
            positions = _counted(ids, segments)
        hidden, _, _ = self._run(ids, segments, segments, positions, None)
        return hidden

    def head(self) -> am.Head:
        """The output layer, its weight in ``dtype``."""
        weight = self.embedding if self.output_head is None else self.output_head
        return am.Head(
            cast("Any", weight[...].astype(self.dtype)), softcap=self.config.final_softcap
        )

    def logits(self, hidden: jax.Array) -> jax.Array:
        """The logits (..., V) of hidden states (..., hidden), in float32."""
        head = self.head()
        weight = cast("jax.Array", head.weight)
        outputs = jnp.matmul(hidden, weight.T, preferred_element_type=jnp.float32)
        return cast("jax.Array", head.projection.logits(cast("Any", outputs), cast("Any", jnp)))

    def __call__(
        self,
        ids: jax.Array,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """All logits, (B, T, V) in float32; for few positions. See :meth:`states`."""
        return self.logits(self.states(ids, segments, positions))

    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache for ``length`` tokens, padding included, of each row."""
        c = self.config
        kept = jnp.zeros((c.layers, rows, length, c.kv_heads, c.head_dim), self.dtype)
        return Cache(kept, kept, jnp.zeros((rows, length), jnp.int32), jnp.int32(0))

    def extend(self, ids: jax.Array, segments: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden states of the next tokens of each row, and the cache with them in it.

        Args:
            ids: (B, T).
            segments: (B, T): 1 for a token, 0 for padding, which may only lie left of all tokens.
            cache: with room for T more.
        """
        before = (cache.segments > 0).sum(1, keepdims=True)
        positions = jnp.maximum(before + jnp.cumsum(segments > 0, axis=1) - 1, 0)
        seen = jax.lax.dynamic_update_slice(cache.segments, segments, (0, cache.length))
        hidden, keys, values = self._run(ids, segments, seen, positions, cache)
        return hidden, Cache(keys, values, seen, cache.length + ids.shape[1])

    def _run(
        self,
        ids: jax.Array,
        segments: jax.Array | None,
        key_segments: jax.Array | None,
        positions: jax.Array,
        cache: Cache | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Hidden states, and the cache's keys and values."""
        config = self.config
        start = jnp.int32(0) if cache is None else cache.length
        slots = ids.shape[1] if cache is None else cache.keys.shape[2]
        distance = (start + jnp.arange(ids.shape[1]))[:, None] - jnp.arange(slots)
        visible = (distance >= 0)[None]
        if segments is not None and key_segments is not None:
            visible &= segments[:, :, None] == key_segments[:, None, :]
        graph, stacked = nnx.split(self.layers)

        def body(
            carry: tuple[jax.Array, jax.Array, jax.Array], scanned: Any
        ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
            x, keys, values = carry
            state, number, window, frequencies = scanned
            layer = nnx.merge(graph, state)
            angles = positions[..., None] * frequencies if config.rotaries else None
            query, key, value = layer.heads(x, angles)
            if cache is not None:
                at = (number, 0, start, 0, 0)
                keys = jax.lax.dynamic_update_slice(keys, key[None], at)
                values = jax.lax.dynamic_update_slice(values, value[None], at)
                key, value = keys[number], values[number]
            mask = visible & (distance < window) if any(config.windows) else visible
            attended = _attend(query, key, value, mask[:, None], config)
            return (layer.rest(x, attended), keys, values), None

        numbers = jnp.arange(config.layers)
        windows = np.array([window or _NO_WINDOW for window in config.windows], np.int32)
        frequencies = np.array(
            [rotary.frequencies(config.head_dim) for rotary in config.rotaries]
            or np.zeros((config.layers, 0)),
            np.float32,
        )
        none = jnp.zeros((0,), self.dtype)
        keys, values = (none, none) if cache is None else (cache.keys, cache.values)
        # What is inside of a scan is computed again anyway; the barrier would only cost time.
        step = jax.checkpoint(body, prevent_cse=False) if self.remat else body
        carry = (self._embedded(ids, positions), keys, values)
        (x, keys, values), _ = jax.lax.scan(step, carry, (stacked, numbers, windows, frequencies))
        return self.norm(x), keys, values

    def _embedded(self, ids: jax.Array, positions: jax.Array) -> jax.Array:
        x = look_up(self.embedding, ids, self.dtype, self.mesh)
        if self.config.embedding_scale != 1.0:
            # Rounded to dtype first, as Gemma was trained.
            x = x * jnp.asarray(self.config.embedding_scale, self.dtype)
        if self.position_embedding is not None:
            x = x + look_up(self.position_embedding, positions, self.dtype, self.mesh)
        return x


def _counted(ids: jax.Array, segments: jax.Array | None) -> jax.Array:
    """Positions of tokens in their documents, (B, T)."""
    index = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    if segments is None:
        return index
    first = jnp.diff(segments, axis=1, prepend=segments[:, :1] - 1) != 0
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, config: DecoderConfig
) -> jax.Array:
    """Attention of (B, T, heads, head_dim) to (B, S, kv_heads, head_dim) where the mask is True."""
    if config.attention_softcap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=config.query_scale)
    groups = query.reshape(*query.shape[:2], config.kv_heads, -1, config.head_dim)
    scores = jnp.einsum("btkgd,bskd->bkgts", groups, key, preferred_element_type=jnp.float32)
    cap = config.attention_softcap
    scores = cap * jnp.tanh(scores * (config.query_scale / cap))
    # A token always sees itself, so no row is without a finite score.
    scores = jnp.where(mask[:, :, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, value).reshape(query.shape)
