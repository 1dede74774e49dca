"""The header of a run: what is about to happen."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from amidmath.integrations.common.cli.facts import print_facts
from amidmath.integrations.jax_loop.devices.mesh import kept_whole
from amidmath.integrations.jax_loop.models.families import family
from amidmath.integrations.jax_loop.models.lora import adapted, module_name
from amidmath.integrations.jax_loop.run.loading import Prepared
from amidmath.integrations.jax_loop.run.models import computing_dtype
from amidmath.integrations.jax_loop.settings.arguments import Arguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import InMemory
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer


def print_header(console: Console, prepared: Prepared, arguments: Arguments) -> None:
    """Print what is about to happen, a line a fact, before anything slow begins."""
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
    """The parameters that stay whole on each device along an axis that was to divide them."""
    return "; ".join(
        f"{count} of the student's parameters ({share:.1%} of its bytes) along {axis}: their "
        f"dimensions are no multiples of {mesh.shape[axis]}"
        for axis, (count, share) in whole.items()
    )


def _adapter(prepared: Prepared, config: JaxConfig, trained: int) -> str:
    """The adapter in words, with its matrices' names in the student's files."""
    known = family(prepared.student.hf_config.model_type)
    tensors = adapted(known, config.lora_target_modules)
    names = ", ".join(dict.fromkeys(map(module_name, tensors)))
    scaled = " over √r" if config.use_rslora else ""
    return f"r {config.lora_r}, α {config.lora_alpha:g}{scaled}, in {names}, {trained:,} parameters"


def _warnings(config: JaxConfig, total: int) -> dict[str, str]:
    """Events that were asked for and will not come, as in a longer run's configuration."""
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
