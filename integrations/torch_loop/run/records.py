"""The run as run.json and its model card say it."""

from collections.abc import Mapping
from dataclasses import asdict

from transformers.trainer_callback import TrainerState

from amidmath.integrations.common.run.arguments import card_of, record_of
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.torch_loop.settings.arguments import Arguments

LIBRARIES = ("amidmath", "torch", "transformers", "trl", "accelerate", "datasets")


def record(arguments: Arguments) -> Record:
    """The run, for run.json and to be compared with what a folder holds."""
    config = arguments.config
    groups = {
        "script": asdict(arguments.script),
        "training": config.to_dict(),  # leaves hub tokens out
        "model": asdict(arguments.model),
        "model_init": arguments.model_init,
        "scores": asdict(arguments.scores),
    }
    return record_of(arguments, groups, LIBRARIES, config.world_size)


def card(
    arguments: Arguments, state: TrainerState, figures: Mapping[str, Mapping[str, float]]
) -> Card:
    """The model card of the student of a run that has ended."""
    config = arguments.config
    tokens = next((e["num_tokens"] for e in reversed(state.log_history) if "num_tokens" in e), None)
    return card_of(
        arguments,
        figures,
        LIBRARIES,
        steps=state.global_step,
        sequences_a_step=config.train_batch_size
        * config.gradient_accumulation_steps
        * config.world_size,
        tokens=None if tokens is None else int(tokens),
        has_adapter=arguments.model.use_peft,
    )
