"""The closeness of a student to its teacher, and the quality of both, on held-out text."""

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
from amidmath.formulas.buckets import fold
from amidmath.integrations.common.evaluation.quality import CHUNK_BYTES, Quality
from amidmath.integrations.common.recipe.measures import KL_TO_TEACHER
from amidmath.integrations.common.text.vocabularies import compared_first, measured_first
from amidmath.integrations.jax_loop.devices.mesh import on_mesh
from amidmath.integrations.jax_loop.loss.compare import in_chunks, spread
from amidmath.integrations.jax_loop.loss.states import (
    Array,
    Positions,
    Reference,
    positions_of,
    reference_of,
    states_of,
)
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.teachers.cached import CachedTeacher, bare
from amidmath.integrations.jax_loop.teachers.teachers import InMemory, Teacher


class Judge:
    """Compares models with a teacher; what it has compiled serves all of a shape.

    Args:
        teacher: the reference; of a cache, over its tokens and the others as one, and KL and
            agreement are NaN where the held-out rows are not cached.
        mesh: of devices.
        vocab: "common_only" leaves out what one side has alone, and so does any where the teacher
            has more tokens, as KL would be infinite.
    """

    def __init__(self, teacher: Teacher, mesh: Mesh, vocab: str = "common") -> None:
        self.teacher, self.mesh = teacher, mesh
        kl, tokens, self.knows = KL_TO_TEACHER, None, True
        if isinstance(teacher, CachedTeacher):
            kl, tokens = teacher.rows.kl_to_teacher, teacher.rows.tokens
            self.knows = teacher.rows.held_out is not None
        self._figures = spread(mesh, partial(_figures, kl, tokens, vocab), by_vocabulary=False)
        self._reference = jax.jit(partial(reference_of, teacher.graph))
        self._of_model = jax.jit(self._judge, static_argnums=0)
        self._of_states = jax.jit(self._compare)

    def __call__(
        self,
        models: Mapping[str, Decoder],
        batches: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    ) -> dict[str, Quality]:
        """Quality of the teacher, if it is in memory, and of each model, in one pass.

        Args:
            models: the models to judge by name. Where one has logits over more or fewer tokens
                than the teacher, KL and agreement are over the first tokens that both have, and
                all others as one more token; perplexity is over a model's own.
            batches: of held-out rows, as ``batches.held_out`` gives them.

        Returns:
            One entry a model, in the order given, the teacher first if it is in memory.

        Raises:
            ValueError: no token of the batches counts.
        """
        teacher, parts = self.teacher, {name: nnx.split(model) for name, model in models.items()}
        sums = {name: np.zeros(4) for name in [*(["teacher"] if teacher.graph else []), *models]}
        now = teacher.current() if isinstance(teacher, InMemory) else None
        for batch in batches:
            placed = on_mesh(self.mesh, batch, teacher.with_lists if self.knows else bare)
            theirs = self._reference(now, placed) if self.knows else None
            if isinstance(theirs, am.Hidden):
                sums["teacher"] += np.asarray(self._of_states(theirs, theirs, placed), np.float64)
            for name, (graph, parameters) in parts.items():
                found = self._of_model(graph, parameters, theirs, placed)
                sums[name] += np.asarray(found, np.float64)
        count = int(next(iter(sums.values()))[3])
        if count == 0:
            raise ValueError("the held-out batches have no token that counts")
        return {
            name: Quality.of_sums(of[:3].tolist(), count, self.knows) for name, of in sums.items()
        }

    def temporary_bytes(self, model: Decoder, batch: Mapping[str, np.ndarray[Any, Any]]) -> int:
        """Memory of judging a model on a batch, beside weights, as XLA has planned it; 0 unknown.

        Args:
            model: to judge.
            batch: of held-out rows; nothing is run.
        """
        teacher = self.teacher
        placed = on_mesh(self.mesh, batch, teacher.with_lists if self.knows else bare)
        now = teacher.current() if isinstance(teacher, InMemory) else None
        theirs, graph = None, nnx.split(model)
        plans = []
        if self.knows:
            plans.append(self._reference.lower(now, placed))
            theirs = jax.eval_shape(self._reference, now, placed)
        plans.append(self._of_model.lower(graph[0], graph[1], theirs, placed))
        held = 0
        for array in jax.tree.leaves(getattr(theirs, "hidden", ())):
            held += int(array.size) * int(array.dtype.itemsize)
        found: list[Any] = [plan.compile().memory_analysis() for plan in plans]
        temporary = [0 if of is None else int(of.temp_size_in_bytes) for of in found]
        return held + max(temporary)

    def _judge(
        self, graph: Any, parameters: Any, theirs: Reference | None, batch: Mapping[str, Array]
    ) -> Array:
        ours = states_of(nnx.merge(graph, parameters), batch)
        return self._compare(ours, ours if theirs is None else theirs, batch)

    def _compare(self, ours: am.Hidden, theirs: Reference, batch: Mapping[str, Array]) -> Array:
        found: Array = self._figures({}, ours, theirs, positions_of(batch))
        return found


def _figures(
    kl: am.AMiD,
    tokens: int | None,
    vocab: str,
    values: Mapping[str, Any],
    student: am.Hidden,
    reference: Reference,
    positions: Positions,
) -> Array:
    """Sums over positions: KL, agreements, negative log-likelihood, and the count; (4,)."""
    del values
    theirs = reference.states if isinstance(reference, am.Hidden) else reference
    width = student.head.weight.shape[0]
    if isinstance(reference, am.Hidden):
        size = reference.head.weight.shape[0]
        tokens = measured_first(width, size, compared_first(vocab, width, size))
        width += size

    def of_chunk(chunk: tuple[Array, Any, Array, Array]) -> Array:
        hidden, theirs, keep, targets = chunk
        logits = student.head.logits(hidden)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(keep, targets, 0))
        if isinstance(reference, am.Hidden):
            ours, of_teacher = logits[:, :tokens], reference.head.logits(theirs)[:, :tokens]
            if ours.shape[-1] != of_teacher.shape[-1]:
                common = min(ours.shape[-1], of_teacher.shape[-1])
                ours, of_teacher = fold(ours, common, jnp), fold(of_teacher, common, jnp)
            distance = kl(ours, of_teacher, keep, reduction="sum")
            agree = jnp.argmax(ours, -1) == jnp.argmax(of_teacher, -1)
        else:  # the first of a list is the most probable
            ours = logits[:, :tokens]
            distance = kl(ours, theirs, keep, reduction="sum")
            agree = jnp.argmax(ours, -1) == theirs.indices[:, 0]
        sums = (jnp.sum(jnp.where(keep, a, 0.0)) for a in (agree, nll, jnp.ones_like(nll)))
        return jnp.stack([distance, *sums])

    operands = (student.states, theirs, positions.mask, positions.targets)
    step = max(1, CHUNK_BYTES // (4 * width))
    return jnp.sum(in_chunks(of_chunk, operands, min(step, positions.mask.size)), axis=0)
