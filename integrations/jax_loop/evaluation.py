"""How close a student is to its teacher, and how good both are, on held-out text."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

import amidmath as am
from amidmath._buckets import fold
from amidmath.integrations.jax_loop.decoder import Decoder
from amidmath.integrations.jax_loop.mesh import on_mesh, spread
from amidmath.integrations.jax_loop.objective import Array, Positions, Reference, States
from amidmath.integrations.jax_loop.step import positions_of, reference_of, states_of
from amidmath.integrations.jax_loop.teachers import CachedTeacher, Teacher, bare
from amidmath.integrations.shared.objective import KL_TO_TEACHER
from amidmath.integrations.shared.quality import Quality

# Positions whose logits are held at a time, of a model and of its teacher.
_CHUNK = 256


def evaluate(
    models: Mapping[str, Decoder],
    teacher: Teacher,
    batches: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    mesh: Mesh,
) -> dict[str, Quality]:
    """Quality of the teacher, if it is in memory, and of each model, in one pass over the batches.

    Args:
        models: the models to judge by name. Where one has logits over more or fewer tokens than
            the teacher, KL and agreement are over the first tokens that both have, and all others
            as one more token; perplexity is over a model's own.
        teacher: the reference; of a cache, over its tokens and the others as one, and KL and
            agreement are NaN where the held-out rows are not cached.
        batches: of held-out rows, as ``batches.held_out`` gives them.
        mesh: of devices.

    Returns:
        One entry a model, in the order given, the teacher first if it is in memory.

    Raises:
        ValueError: no token of the batches counts.
    """
    kl, knows = KL_TO_TEACHER, True
    if isinstance(teacher, CachedTeacher):
        kl, knows = teacher.rows.kl_to_teacher, teacher.rows.held_out is not None
    figures = spread(mesh, partial(_figures, kl), by_vocabulary=False)
    parts = {name: nnx.split(model) for name, model in models.items()}

    @jax.jit
    def reference(parameters: Any, batch: Mapping[str, Array]) -> Reference | None:
        return reference_of(teacher.graph, parameters, batch)

    @partial(jax.jit, static_argnums=0)
    def judge(
        graph: Any, parameters: Any, batch: Mapping[str, Array], theirs: Reference | None
    ) -> Array:
        ours = states_of(nnx.merge(graph, parameters), batch)
        # Without a reference, to itself.
        found: Array = figures({}, ours, ours if theirs is None else theirs, positions_of(batch))
        return found

    @jax.jit
    def judge_teacher(theirs: States, batch: Mapping[str, Array]) -> Array:
        found: Array = figures({}, theirs, theirs, positions_of(batch))
        return found

    sums = {name: np.zeros(4) for name in [*(["teacher"] if teacher.graph else []), *models]}
    for batch in batches:
        placed = on_mesh(mesh, teacher.with_lists(batch) if knows else bare(batch))
        theirs = reference(teacher.parameters, placed) if knows else None
        if isinstance(theirs, States):
            sums["teacher"] += np.asarray(judge_teacher(theirs, placed), np.float64)
        for name, (graph, parameters) in parts.items():
            sums[name] += np.asarray(judge(graph, parameters, placed, theirs), np.float64)
    count = int(next(iter(sums.values()))[3])
    if count == 0:
        raise ValueError("the held-out batches have no token that counts")
    return {name: Quality.of_sums(of[:3].tolist(), count, knows) for name, of in sums.items()}


def _figures(
    kl: am.AMiD,
    values: Mapping[str, Any],
    student: States,
    reference: Reference,
    positions: Positions,
) -> Array:
    """Sums over positions: KL, agreements, negative log-likelihood, and the count; (4,)."""
    del values
    count = positions.mask.size
    step = min(_CHUNK, count)

    def cut(array: Array) -> Array:
        flat = array.reshape(count, *array.shape[2:])
        filled = jnp.pad(flat, ((0, -count % step), *((0, 0),) * (flat.ndim - 1)))
        return filled.reshape(-1, step, *flat.shape[1:])

    theirs = reference.hidden if isinstance(reference, States) else reference

    def of_chunk(chunk: tuple[Array, Any, Array, Array]) -> Array:
        hidden, theirs, keep, targets = chunk
        logits = student.logits(hidden)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(keep, targets, 0))
        if isinstance(reference, States):
            ours, of_teacher = logits, reference.logits(theirs)
            if ours.shape[-1] != of_teacher.shape[-1]:
                common = min(ours.shape[-1], of_teacher.shape[-1])
                ours, of_teacher = fold(ours, common, jnp), fold(of_teacher, common, jnp)
            distance = kl(ours, of_teacher, keep, reduction="sum")
            agree = jnp.argmax(ours, -1) == jnp.argmax(of_teacher, -1)
        else:  # the first of a list is the most probable
            distance = kl.sparse(logits, theirs, keep, reduction="sum")
            agree = jnp.argmax(logits, -1) == theirs.indices[:, 0]
        sums = (jnp.sum(jnp.where(keep, a, 0.0)) for a in (agree, nll, jnp.ones_like(nll)))
        return jnp.stack([distance, *sums])

    operands = (student.hidden, theirs, positions.mask, positions.targets)
    return jnp.sum(jax.lax.map(of_chunk, jax.tree.map(cut, operands)), axis=0)
