"""A teacher in JAX and the rows that it is asked of, prepared as for training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from rich.console import Console

from amidmath.integrations.common.cli.command_line import TEACHER_FLAG
from amidmath.integrations.common.data.splits import load_splits
from amidmath.integrations.common.rows.batches import counted, fitting_length, laid_out_rows
from amidmath.integrations.common.rows.marks import NO_ROW
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.caching import tokenizer_for
from amidmath.integrations.common.teacher_cache.format import Lists
from amidmath.integrations.common.teacher_cache.source import check_k
from amidmath.integrations.common.text.tokenizers import load_tokenizer, padding
from amidmath.integrations.common.text.vocabularies import COMMON_ONLY
from amidmath.integrations.jax_loop.devices.mesh import ROWS, make_mesh, row_shards
from amidmath.integrations.jax_loop.devices.processes import on_host
from amidmath.integrations.jax_loop.loss.compare import in_chunks
from amidmath.integrations.jax_loop.loss.states import states_of
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.generation import end_tokens
from amidmath.integrations.jax_loop.run.loading import rows_of
from amidmath.integrations.jax_loop.run.models import as_cached, load_teacher_model
from amidmath.integrations.jax_loop.settings.cache_arguments import CacheRequest
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.teachers.cached import bare

# Positions whose logits are held at a time.
_CHUNK = 256
# Rows are padded to a multiple of it, so that few programs serve all lengths.
_BUCKET = 64


@dataclass(frozen=True)
class JaxCacheSource:
    """A teacher in JAX and the rows that it is asked of; a ``teacher_cache.source.CacheSource``.

    Args:
        model: the teacher, on the mesh.
        mesh: of devices, which share the rows of a batch.
        prepared: the rows.
        vocabulary: over how many first tokens its probabilities are.
        common: how many first tokens are the same for the tokenizer that prepared the rows.
        pad: the token that fills rows.
        config: temperature and batch size.
    """

    model: Decoder
    mesh: Mesh
    prepared: PreparedRows
    vocabulary: int
    common: int
    pad: int
    config: JaxConfig

    @property
    def logits(self) -> int:
        """How many logits the teacher gives."""
        return self.model.config.vocabulary

    @property
    def dtype(self) -> str:
        """Of the teacher's weights."""
        return str(np.dtype(self.model.embedding.dtype))

    @property
    def precision(self) -> str:
        """In what it multiplies."""
        computing, own = self.model.dtype, self.model.embedding.dtype
        return "bf16" if computing == jnp.bfloat16 != own else "no"

    @property
    def rows_at_once(self) -> int:
        """How many rows it is asked of in a forward pass, on all devices."""
        return self.config.per_device_eval_batch_size * row_shards(self.mesh)

    @cached_property
    def _longest(self) -> int:
        return fitting_length(self.prepared.rows)

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        graph, parameters = nnx.split(self.model)
        return graph, parameters

    @cached_property
    def _lists(self) -> Callable[..., tuple[jax.Array, ...]]:
        asked = partial(_lists_of, self._parts[0], tokens=self.vocabulary)
        return jax.jit(asked, static_argnames="k")

    def ask(self, rows: Sequence[int], k: int) -> dict[int, Lists]:
        """The lists of some rows, one forward pass."""
        prepared, filling = self.prepared, self.rows_at_once - len(rows)
        longest = max(prepared.lengths[row] for row in rows)
        length = min(-(-longest // _BUCKET) * _BUCKET, self._longest)
        chosen = np.array([*rows, *[NO_ROW] * filling])
        batch = bare(laid_out_rows(prepared.rows, chosen, length, self.pad))
        expected = np.zeros((self.rows_at_once, length), bool)
        for place, row in enumerate(rows):
            expected[place, prepared.positions[row]] = True
        if not np.array_equal(counted(batch), expected):
            raise RuntimeError(f"rows {list(rows)}: the batch learns other positions than cached")
        placed = jax.device_put(batch, NamedSharding(self.mesh, P(ROWS)))
        temperature = jnp.float32(self.config.temperature)
        found = self._lists(self._parts[1], placed, temperature, k=k)
        arrays = [on_host(array)[: expected.sum()] for array in found]
        ends = np.cumsum([len(prepared.positions[row]) for row in rows])[:-1]
        logs, indices, tails = (np.split(array, ends) for array in arrays)
        return {
            row: Lists(logs[i], indices[i], tails[i], prepared.positions[row])
            for i, row in enumerate(rows)
        }


def _lists_of(
    graph: Any,
    parameters: Any,
    batch: dict[str, jax.Array],
    temperature: jax.Array,
    *,
    tokens: int,
    k: int,
) -> tuple[jax.Array, ...]:
    """The k most probable of the first tokens, at the positions of a batch (B, L), and their rest.

    Returns:
        Log-probabilities (B L, k) in float32, tokens (B L, k), and the logarithm of the mass of
        the others (B L,), added up rather than subtracted; positions that count come first, in
        their order, and there is nothing of the others.
    """
    states = states_of(nnx.merge(graph, parameters), batch)
    head = states.head.first(tokens)
    keep = counted(batch).reshape(-1)
    order = jnp.argsort(~keep, stable=True)

    def of_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        hidden, kept = chunk

        def asked() -> tuple[jax.Array, ...]:
            logs = jax.nn.log_softmax(head.logits(hidden) / temperature, axis=-1)
            top, indices = jax.lax.top_k(logs, k)
            others = jnp.put_along_axis(logs, indices, -jnp.inf, axis=-1, inplace=False)
            return top, indices, jax.nn.logsumexp(others, axis=-1)

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(asked))
        found: tuple[jax.Array, ...] = jax.lax.cond(kept.any(), asked, lambda: nothing)
        return found

    flat = (states.states.reshape(-1, states.states.shape[-1])[order][None], keep[order][None])
    found = in_chunks(of_chunk, flat, min(_CHUNK, keep.size))
    return tuple(array.reshape(-1, *array.shape[2:]) for array in found)


def load(request: CacheRequest, console: Console) -> JaxCacheSource:
    """The teacher, and the rows as jax_distill.py would prepare them.

    Raises:
        InputError: something given does not fit.
    """
    config, script = request.config, request.script
    mesh = make_mesh(config.mesh)
    splits = load_splits(script, config.dataset_text_field, config.seed)
    theirs = load_tokenizer(TEACHER_FLAG, request.teacher, revision=config.teacher_model_revision)
    model = load_teacher_model(request.teacher, config, mesh)
    size = model.decoder.config.vocabulary
    tokenizer, common, sizes = tokenizer_for(request, theirs, size, console)
    asked = common if config.vocab == COMMON_ONLY else size
    check_k(script.k, asked)
    name, part = ("eval", splits[1]) if script.held_out else ("train", splits[0])
    say = partial(console.print, highlight=False, soft_wrap=True)
    prepared = as_cached(rows_of(part, name, tokenizer, config, say, sizes), tokenizer, config)
    pad = padding(tokenizer, end_tokens(model, theirs), size)
    return JaxCacheSource(model.decoder, mesh, prepared, asked, common, pad, config)
