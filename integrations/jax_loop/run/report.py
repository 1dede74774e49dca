"""What a run says of itself: its header, run.json, the model card, and what it would take."""

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from amidmath.integrations.common.cli.command_line import STUDENT_FLAG, TEACHER_FLAG
from amidmath.integrations.common.cli.facts import print_facts
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.run.run_folder import Record
from amidmath.integrations.jax_loop.devices.mesh import kept_whole
from amidmath.integrations.jax_loop.models.families import family
from amidmath.integrations.jax_loop.models.lora import adapted, module_name
from amidmath.integrations.jax_loop.run.loading import Prepared, computing_dtype
from amidmath.integrations.jax_loop.settings.arguments import Arguments, JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import InMemory
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

LIBRARIES = (
    *("amidmath", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("transformers", "datasets"),
)


def record(arguments: Arguments) -> Record:
    """The run, for run.json and to be compared with what a folder holds."""
    script, config = arguments.script, arguments.config
    return Record(
        arguments={
            "script": asdict(script),
            "training": asdict(config),
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
        processes=jax.process_count(),
    )


def card(
    arguments: Arguments, trainer: JaxTrainer, figures: Mapping[str, Mapping[str, float]]
) -> Card:
    """The model card of the student of a run that has ended."""
    config, batches = arguments.config, trainer.batches
    recipe = config.recipe()
    return Card(
        name=arguments.output_dir.name or "student",
        student=arguments.student,
        teacher=arguments.teacher or config.teacher_cache or "the student's own base model",
        data=str(arguments.script.dataset_name),
        method=recipe.method.name,
        loss=recipe.describe(),
        conventions=recipe.conventions(),
        sequences=config.data_policy().describe(),
        steps=trainer.step,
        sequences_a_step=batches.batch_size * batches.accumulation,
        tokens=trainer.figures.tokens,
        results=figures,
        versions=_versions(),
        has_adapter=config.use_peft,
    )


def print_header(console: Console, prepared: Prepared, arguments: Arguments) -> None:
    """What is about to happen, a line a fact, before anything slow begins."""
    script, config, trainer = arguments.script, arguments.config, prepared.trainer
    teacher = trainer.teacher.describe()
    if isinstance(trainer.teacher, InMemory):
        teacher += f", {_count(trainer.teacher.current()) / 1e6:.1f}M parameters"
    trained, frozen = _count(trainer.state.trained), _count(trainer.state.frozen)
    rows, held_out = map(len, prepared.rows)
    batches, asked = trainer.batches, trainer.task_scores
    axes = ", ".join(f"{name} {size}" for name, size in trainer.mesh.shape.items() if size > 1)
    whole = kept_whole(trainer.mesh, (trainer.state.trained, trainer.state.frozen))
    fixed = set(trainer.recipe.values(0, 2)) - trainer.traced
    anew = f"; compiled anew whenever {' or '.join(sorted(fixed))} changes" if fixed else ""
    print_facts(
        console,
        {
            "method": f"{trainer.recipe.describe()}   (p teacher, q student, r assistant)",
            "meaning": trainer.recipe.conventions(),
            "sequences": trainer.policy.describe(),
            "teacher": teacher,
            "student": f"{arguments.student}, {(trained + frozen) / 1e6:.1f}M parameters, "
            f"{trained / 1e6:.1f}M of them trained",
            **({"adapter": _adapter(prepared, config, trained)} if config.use_peft else {}),
            "data": f"{script.dataset_name}: {rows:,} sequences of up to {batches.length} tokens, "
            f"{held_out:,} held out",
            "training": f"{trainer.total:,} steps of {batches.batch_size * batches.accumulation} "
            f"sequences, {config.optim}, learning rate {config.learning_rate:g} "
            f"({config.lr_scheduler_type})"
            + (", then the same with plain cross-entropy" if script.baseline else ""),
            "device": f"{jax.device_count()} {jax.default_backend()}"
            + (f" ({axes})" if axes else "")
            + anew,
            "precision": _precision(trainer, config),
            **({"not divided": _not_divided(trainer.mesh, whole)} if whole else {}),
            "output": f"{arguments.output_dir}/",
            **({} if asked is None else {"scores": asked.describe()}),
            **_warnings(config, trainer.total),
        },
    )


def memory_in_words(prepared: Prepared) -> str:
    """What XLA says that a training step and an evaluation take on a device; neither is run."""
    trainer = prepared.trainer
    found: Any = trainer.compiled_step().memory_analysis()
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


def _precision(trainer: JaxTrainer, config: JaxConfig) -> str:
    """In which types the student's weights are and are multiplied."""
    trained, frozen = (
        sorted({np.dtype(a.dtype).name for a in jax.tree.leaves(of) if a.ndim})
        for of in (trainer.state.trained, trainer.state.frozen)
    )
    found = f"trained weights and optimiser states in {' and '.join(trained)}"
    if frozen and frozen != trained:
        found += f", frozen weights in {' and '.join(frozen)}"
    return f"{found}, multiplied in {np.dtype(computing_dtype(config)).name}"


def _not_divided(mesh: Mesh, whole: Mapping[str, tuple[int, float]]) -> str:
    """What stays whole on each device along an axis that was to divide it."""
    return "; ".join(
        f"{count} of the student's parameters ({share:.1%} of its bytes) along {axis}: their "
        f"dimensions are no multiples of {mesh.shape[axis]}"
        for axis, (count, share) in whole.items()
    )


def _adapter(prepared: Prepared, config: JaxConfig, trained: int) -> str:
    """What the adapter is, with its matrices' names in the student's files."""
    known = family(prepared.student.hf_config.model_type)
    tensors = adapted(known, config.lora_target_modules)
    names = ", ".join(dict.fromkeys(map(module_name, tensors)))
    scaled = " over √r" if config.use_rslora else ""
    return f"r {config.lora_r}, α {config.lora_alpha:g}{scaled}, in {names}, {trained:,} parameters"


def _warnings(config: JaxConfig, total: int) -> dict[str, str]:
    """What was asked for and will not come, as a shared configuration of a longer run may have."""
    found = []
    if config.eval_strategy == "steps" and config.eval_steps > total:
        found.append(
            f"--eval_steps {config.eval_steps} is beyond the last step, {total}: no evaluation is "
            "due during training"
        )
    if config.warmup_steps > total:
        found.append(
            f"--warmup_steps {config.warmup_steps:g} is more than the {total} steps of the run: "
            "the learning rate only rises"
        )
    return {"warning": "; ".join(found)} if found else {}


def _count(parameters: Any) -> int:
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(parameters))


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}
