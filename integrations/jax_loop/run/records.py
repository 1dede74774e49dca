"""The run as run.json and its model card say it."""

from collections.abc import Mapping
from dataclasses import asdict

import jax

from amidmath.integrations.common.run.arguments import card_of, record_of
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.jax_loop.settings.arguments import Arguments
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

LIBRARIES = (
    *("amidmath", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("transformers", "datasets"),
)


def record(arguments: Arguments) -> Record:
    """The run, for run.json and to be compared with what a folder holds."""
    groups = {
        "script": asdict(arguments.script),
        "training": asdict(arguments.config),
        "scores": asdict(arguments.scores),
    }
    return record_of(arguments, groups, LIBRARIES, jax.process_count())


def card(
    arguments: Arguments, trainer: JaxTrainer, figures: Mapping[str, Mapping[str, float]]
) -> Card:
    """The model card of the student of a run that has ended."""
    batches = trainer.batches
    return card_of(
        arguments,
        figures,
        LIBRARIES,
        steps=trainer.step,
        sequences_a_step=batches.batch_size * batches.accumulation,
        tokens=trainer.logs.figures.tokens,
        has_adapter=arguments.config.use_peft,
    )
