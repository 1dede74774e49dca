"""What a run says of itself: in run.json, and on its model card."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version

from transformers.trainer_callback import TrainerState

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.run_folder import Record
from amidmath.integrations.torch_loop.settings.arguments import Arguments

LIBRARIES = ("amidmath", "torch", "transformers", "trl", "accelerate", "datasets")


def record(arguments: Arguments) -> Record:
    """The run, for run.json and to be compared with what a folder holds."""
    script, config = arguments.script, arguments.config
    return Record(
        arguments={
            "script": asdict(script),
            "training": config.to_dict(),  # leaves hub tokens out
            "model": asdict(arguments.model),
            "model_init": arguments.model_init,
            "scores": asdict(arguments.scores),
        },
        reads={
            STUDENT_FLAG: arguments.student,
            TEACHER_FLAG: arguments.teacher,
            "--teacher_cache": config.teacher_cache,
            "--dataset_name": script.dataset_name,
            "--eval_dataset_name": script.eval_dataset_name,
            "--eval_task_dataset": arguments.scores.eval_task_dataset,
        },
        facts={
            "loss": config.recipe().describe(),
            "meaning": config.recipe().conventions(),
            "versions": _versions(),
        },
        processes=config.world_size,
    )


def card(
    arguments: Arguments, state: TrainerState, figures: Mapping[str, Mapping[str, float]]
) -> Card:
    """The model card of the student of a run that has ended."""
    config, recipe = arguments.config, arguments.config.recipe()
    rows = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    tokens = next((e["num_tokens"] for e in reversed(state.log_history) if "num_tokens" in e), None)
    teacher = arguments.teacher or config.teacher_cache or "the student's own base model"
    return Card(
        name=arguments.output_dir.name or "student",
        student=arguments.student,
        teacher=teacher,
        data=str(arguments.script.dataset_name),
        method=recipe.method.name,
        loss=recipe.describe(),
        conventions=recipe.conventions(),
        sequences=config.data_policy().describe(),
        steps=state.global_step,
        sequences_a_step=rows,
        tokens=None if tokens is None else int(tokens),
        results=figures,
        versions=_versions(),
        has_adapter=arguments.model.use_peft,
    )


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
