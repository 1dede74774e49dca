"""Answers of a decoder to prompts in batches, for evaluation and for training on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.text import tokenizers
from amidmath.integrations.jax_loop.devices.mesh import row_shards
from amidmath.integrations.jax_loop.devices.processes import on_host
from amidmath.integrations.jax_loop.models.decoder import Cache, Decoder
from amidmath.integrations.jax_loop.models.model_files import LoadedModel


def generate(
    model: Decoder,
    prompts: Sequence[NDArray[np.integer[Any]]],
    *,
    end_tokens: Sequence[int],
    pad: int,
    max_new_tokens: int,
    key: jax.Array,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 8,
    length_bucket: int = 64,
    prompt_length: int | None = None,
    max_length: int | None = None,
    tokens: int | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> list[NDArray[np.int32]]:
    """Generate a model's answer to each prompt.

    It samples from the model's own distribution, tempered and cut to the nucleus as asked and by
    nothing else. Prompts are batched by length and padded on their left to a multiple of
    ``length_bucket``, so that one program serves many lengths; it is compiled anew for another
    bucket, ``batch_size`` or ``max_new_tokens``, not for another temperature or ``max_length``.
    With ``prompt_length`` there is one bucket, and so one program. What is drawn for a
    prompt depends on ``key`` and its place among the prompts; other prompts and ``batch_size``
    change it by rounding only.

    Args:
        model: the decoder, on one device or spread over a mesh.
        prompts: the token ids of each prompt, one-dimensional, at least one token.
        end_tokens: any of these ends an answer; at least one.
        pad: the token for padding, which no token sees.
        max_new_tokens: the longest answer.
        key: a JAX random key.
        temperature: divides the logits; 0 takes the most probable token each time.
        top_p: sample from the fewest tokens that have this probability together.
        batch_size: prompts at a time, on each device that rows are spread over; the last batch is
            filled up with padding.
        length_bucket: lengths of prompts are rounded up to multiples of it.
        prompt_length: the longest prompt that there may be; all are padded to its bucket.
        max_length: of a prompt and its answer together; answers to long prompts end there.
        tokens: answers are of the first so many tokens only; None for all that the model has.
        on_batch: called after each batch with its number of prompts.

    Returns:
        The token ids of each answer, in the order of the prompts; one that came to its end
        includes the token that ended it.

    Raises:
        InputError: a prompt without tokens, or one that leaves no room for the answer; it names
            the row.
        ValueError: a parameter out of its range.
    """
    _check(max_new_tokens, temperature, top_p, batch_size, length_bucket, end_tokens)
    if not 0 <= pad < model.config.vocabulary:
        raise ValueError(
            f"pad must be a token of the model, below {model.config.vocabulary}, got {pad}"
        )
    context = model.config.context
    limits = _limits([len(prompt) for prompt in prompts], context, max_new_tokens, max_length)
    at_least = prompt_length or 0
    batch_size *= 1 if model.mesh is None else row_shards(model.mesh)
    graph, state = nnx.split(model)
    ends = jnp.asarray(end_tokens, jnp.int32)
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    answers: dict[int, NDArray[np.int32]] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        chosen = [prompts[row] for row in rows]
        length = _bucket(max(at_least, *map(len, chosen)), length_bucket, context)
        ids, segments = _left_padded(chosen, pad, batch_size, length)
        # A row that only fills the batch up has a number too, but is at its end from the start.
        filling = [0] * (batch_size - len(rows))
        numbers = np.array([*rows, *filling], np.uint32)
        at_most = np.array([*(limits[row] for row in rows), *filling], np.int32)
        found, lengths = _answers(
            state,
            ids,
            segments,
            numbers,
            at_most,
            key,
            ends,
            jnp.float32(temperature),
            jnp.float32(top_p),
            graph=graph,
            max_new_tokens=max_new_tokens,
            sampled=temperature > 0.0,
            nucleus=top_p < 1.0,
            tokens=tokens,
        )
        drawn, counts = on_host(found), on_host(lengths)
        for place, row in enumerate(rows):
            answers[row] = drawn[place, : counts[place]].copy()
        if on_batch is not None:
            on_batch(len(rows))
    return [answers[row] for row in range(len(prompts))]


def end_tokens(model: LoadedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model names besides."""
    content = model.generation_config or {}
    named = content.get("eos_token_id", getattr(model.hf_config, "eos_token_id", None))
    return tokenizers.end_tokens(tokenizer, named)


class _Progress(NamedTuple):
    """The state of the answers of a batch.

    Args:
        step: how many tokens each row has been given.
        tokens: the last of each row.
        answers: all of them, (B, max_new_tokens).
        lengths: how many belong to the answer.
        going: rows that have not come to their end.
        cache: with the tokens before the last.
    """

    step: jax.Array
    tokens: jax.Array
    answers: jax.Array
    lengths: jax.Array
    going: jax.Array
    cache: Cache


@partial(jax.jit, static_argnames=("graph", "max_new_tokens", "sampled", "nucleus", "tokens"))
def _answers(
    state: nnx.State[Any, Any],
    ids: jax.Array,
    segments: jax.Array,
    numbers: jax.Array,
    at_most: jax.Array,
    key: jax.Array,
    ends: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    graph: nnx.GraphDef[Decoder],
    max_new_tokens: int,
    sampled: bool,
    nucleus: bool,
    tokens: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Answers (B, max_new_tokens), and how much of each row is one."""
    model = nnx.merge(graph, state)
    rows, length = ids.shape
    keys = jax.vmap(partial(jax.random.fold_in, key))(numbers)

    def draw(hidden: jax.Array, step: jax.Array) -> jax.Array:
        logits = model.logits(hidden[:, -1])
        if tokens is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < tokens, logits, -jnp.inf)
        if not sampled:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        now = jax.vmap(lambda row: jax.random.fold_in(row, step))(keys)
        one = partial(_drawn, top_p=top_p if nucleus else None)
        return jax.vmap(one)(now, logits / temperature)

    def given(p: _Progress, tokens: jax.Array, cache: Cache) -> _Progress:
        answers = jax.lax.dynamic_update_slice(p.answers, tokens[:, None], (0, p.step))
        lengths = p.lengths + p.going
        going = p.going & ~jnp.isin(tokens, ends) & (lengths < at_most)
        return _Progress(p.step + 1, tokens, answers, lengths, going, cache)

    def advance(p: _Progress) -> _Progress:
        marks = jnp.ones((rows, 1), segments.dtype)
        hidden, cache = model.extend(p.tokens[:, None], marks, p.cache)
        return given(p, draw(hidden, p.step), cache)

    hidden, cache = model.extend(ids, segments, model.empty_cache(rows, length + max_new_tokens))
    nothing = _Progress(
        step=jnp.int32(0),
        tokens=jnp.zeros(rows, jnp.int32),
        answers=jnp.zeros((rows, max_new_tokens), jnp.int32),
        lengths=jnp.zeros(rows, jnp.int32),
        going=(segments > 0).any(axis=1),
        cache=cache,
    )
    end = jax.lax.while_loop(
        lambda p: (p.step < max_new_tokens) & p.going.any(),
        advance,
        given(nothing, draw(hidden, nothing.step), cache),
    )
    return end.answers, end.lengths


def _drawn(key: jax.Array, logits: jax.Array, *, top_p: jax.Array | None) -> jax.Array:
    """A token, of logits (V,)."""
    if top_p is None:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    order = jnp.argsort(logits, descending=True)
    sorted_logits = logits[order]
    probabilities = jax.nn.softmax(sorted_logits)
    before = jnp.cumsum(probabilities) - probabilities
    # The first is kept whatever rounding says.
    kept = (before < top_p) | (jnp.arange(logits.shape[0]) == 0)
    place = jax.random.categorical(key, jnp.where(kept, sorted_logits, -jnp.inf))
    return order[place].astype(jnp.int32)


def _limits(
    lengths: Sequence[int], context: int, max_new_tokens: int, max_length: int | None
) -> list[int]:
    """How long the answer to each prompt may be; raises InputError where there is no room."""
    if max_length is None:
        tokenizers.check_lengths(context, lengths, max_new_tokens)
        return [max_new_tokens] * len(lengths)
    room = min(max_length, context)
    tokenizers.check_lengths(room, lengths, 1)
    return [min(max_new_tokens, room - length) for length in lengths]


def _bucket(longest: int, bucket: int, context: int) -> int:
    """The length that prompts of up to ``longest`` tokens are padded to."""
    return min(-(-longest // bucket) * bucket, context)


def _left_padded(
    prompts: Sequence[NDArray[np.integer[Any]]], pad: int, rows: int, length: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Tokens, and 1 where they are no padding, (rows, length)."""
    ids = np.full((rows, length), pad, np.int32)
    segments = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = prompt
        segments[row, length - len(prompt) :] = 1
    return ids, segments


def _check(
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    batch_size: int,
    length_bucket: int,
    ends: Sequence[int],
) -> None:
    sizes = {
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "length_bucket": length_bucket,
    }
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 or positive and finite, got {temperature}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    if not ends:
        raise ValueError("end_tokens must name at least one token")
