"""The memory of a run, as XLA plans it."""

from typing import Any

import jax.numpy as jnp

from amidmath.integrations.common.policies.base import Source
from amidmath.integrations.jax_loop.devices.mesh import on_mesh
from amidmath.integrations.jax_loop.run.loading import Prepared
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer


def memory_in_words(prepared: Prepared) -> str:
    """The memory that XLA plans for a training step and an evaluation; neither is run."""
    trainer = prepared.trainer
    found: Any = compiled_step(trainer).memory_analysis()
    if found is None:
        return "Memory: this backend does not say what a step takes."
    parts = {
        "weights, optimiser states and the batch": found.argument_size_in_bytes,
        "gradients and activations": found.temp_size_in_bytes,
    }
    total = sum(parts.values())
    judging = prepared.judge.temporary_bytes(trainer.student, next(prepared.held_out(None)))
    listed = ", ".join(f"{size / 1e9:.2f} GB {name}" for name, size in parts.items())
    return (
        f"Memory of a training step on each device, as XLA has planned it: {total / 1e9:.2f} GB "
        f"({listed}). An evaluation takes {judging / 1e9:.2f} GB beside weights, with "
        f"{trainer.config.per_device_eval_batch_size} sequences at a time. Libraries and what an "
        "allocator keeps back come on top."
    )


def compiled_step(trainer: JaxTrainer) -> Any:
    """The training step as XLA has compiled it, of the first batch; nothing is run."""
    batch = trainer.rollouts.batch(Source.DATASET, trainer.batches.step(0))
    placed = on_mesh(trainer.mesh, batch, trainer.teacher.with_lists, lead=1)
    values, fixed = trainer.scheduled()
    lowered = trainer.steps.train.lower(
        trainer.state,
        trainer.teacher.parameters,
        placed,
        values,
        fixed=fixed,
        denominator=jnp.float32(1),
        look=jnp.asarray(False),
    )
    return lowered.compile()
