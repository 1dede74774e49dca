"""A whole optimiser step in JAX, distilled against cross-entropy, with `make distill`'s models.

A step is the teacher's forward pass, the student's loss and gradient, and AdamW, from random
weights. Cross-entropy's teacher is a compiled function of its own that gives its logits, of which
no use is made.
"""

from __future__ import annotations

import functools
from typing import Any

from benchmarks import phases
from benchmarks.subjects import Subject, missing
from benchmarks.training import LABELS, LOGGED, LOSSES, SEED, Shape, configuration

OURS, PLAIN = "JaxTrainer", "JAX"


def group(shape: Shape) -> str:
    """The table's name."""
    return f"JAX step {shape.rows} × {shape.length} tokens"


def _model(shape: Shape, layers: int) -> Any:
    """The Llama of the torch steps, with random weights of its own."""
    from flax import nnx

    from amidmath.integrations.jax_loop.models.decoder import Decoder
    from amidmath.integrations.jax_loop.models.families import read_config

    return Decoder(read_config(configuration(shape, layers)), rngs=nnx.Rngs(SEED))


@functools.lru_cache(maxsize=1)
def _teacher(shape: Shape) -> Any:
    """The teacher that all subjects share."""
    return _model(shape, shape.teacher_layers)


def _batch(shape: Shape) -> dict[str, Any]:
    """One micro-batch in which every token counts."""
    import numpy as np

    ids = np.random.default_rng(SEED).integers(
        shape.vocabulary, size=(1, shape.rows, shape.length), dtype=np.int32
    )
    positions = np.broadcast_to(np.arange(shape.length, dtype=np.int32), ids.shape)
    return {
        "input_ids": ids,
        "segments": np.ones_like(ids),
        "positions": np.ascontiguousarray(positions),
        "labels": ids,
    }


def _step(shape: Shape, settings: dict[str, Any] | None, look: bool) -> Any:
    """An optimiser step; of cross-entropy without settings."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from amidmath.integrations.jax_loop.loss.compare import Whole
    from amidmath.integrations.jax_loop.loss.objective import CrossEntropy, Objective
    from amidmath.integrations.jax_loop.settings.config import JaxConfig
    from amidmath.integrations.jax_loop.training.optimizers import trained_parameters
    from amidmath.integrations.jax_loop.training.step import Steps, TrainState

    trains = trained_parameters(JaxConfig(freeze_embeddings=True))
    graph, trained, frozen = nnx.split(_model(shape, shape.student_layers), trains, ...)
    teacher_graph, teacher = nnx.split(_teacher(shape))
    rule = optax.adamw(1e-5)
    state = TrainState(trained, frozen, rule.init(trained))
    measured: Objective | CrossEntropy = CrossEntropy()
    if settings is not None:
        measured = Objective(JaxConfig(**settings).recipe(), Whole())
    steps = Steps(
        graph,
        None if settings is None else teacher_graph,
        rule,
        measured.loss,
        lambda values, *seen: measured.statistics(*seen),
        jax.tree.map(lambda array: array.sharding, state),
    )
    batch = {name: jnp.asarray(array) for name, array in _batch(shape).items()}
    denominator = jnp.float32(shape.rows * (shape.length - 1))
    held = [state]

    @jax.jit
    def logits(parameters: Any, ids: jax.Array) -> jax.Array:
        return nnx.merge(teacher_graph, parameters)(ids)

    def step() -> tuple[Any, tuple[Any, ...]]:
        if settings is None:
            jax.block_until_ready(logits(teacher, batch["input_ids"][0]))
        held[0], result = steps.train(
            held[0],
            None if settings is None else teacher,
            batch,
            {},
            fixed=(),
            denominator=denominator,
            look=jnp.asarray(look),
        )
        jax.block_until_ready(held[0])
        return result.loss, ()

    return step


def _subject(name: str, computes: str, settings: dict[str, Any] | None, look: bool) -> Subject:
    made = functools.lru_cache(maxsize=1)(
        functools.partial(_step, settings=settings, look=look)
    )  # all sweeps with the same models

    def build(shape: tuple[int, ...]) -> phases.Phases:
        return {"both": phases.Timed(made(Shape(*shape)))}

    absent = missing("jax", "flax", "optax", "orbax", "transformers")
    return Subject(name, "JAX CPU", computes, build, None, True, absent, ("both",))


@functools.cache
def subjects() -> tuple[Subject, ...]:
    """Cross-entropy, and losses of the distillation loop."""
    kl = next(iter(LOSSES))
    return (
        _subject(PLAIN, LABELS, None, False),
        *(_subject(OURS, computes, settings, False) for computes, settings in LOSSES.items()),
        _subject(OURS, kl + LOGGED, LOSSES[kl], True),
    )
