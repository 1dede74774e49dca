"""Computing in bfloat16 with weights in float32."""

from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from tiny import write_jsonl

from amidmath.integrations.jax_loop.run.loading import prepare
from amidmath.integrations.jax_loop.settings.arguments import Arguments, JaxScriptArguments
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.training.step import TrainState
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

ROWS = [{"prompt": f"{name}: ", "completion": f"{name * 9} and no more"} for name in "abcdefgh"]


def trainer(bf16: bool, student: Path, teacher: Path, folder: Path, **changes: Any) -> JaxTrainer:
    data = str(write_jsonl(folder / "rows.jsonl", ROWS))
    settings: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "bf16": bf16,
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "max_length": 40,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "disable_tqdm": True,
        **changes,
    }
    script = JaxScriptArguments(dataset_name=data, eval_dataset_name=data)
    config = JaxConfig(**settings)
    return prepare(Arguments(str(student), str(teacher), folder, script, config), print).trainer


def losses(made: JaxTrainer) -> list[float]:
    """The loss of every step, from a gradient over the batch's positions."""
    found = []
    for _ in range(made.total):
        before = made.logs.figures.loss_sum
        made.make_step()
        found.append(made.logs.figures.loss_sum - before)
    return found


def test_bfloat16_trains_weights_of_float32(
    student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    settings = {"learning_rate": 5e-3, "gradient_checkpointing": True}
    half = trainer(True, student_dir, teacher_dir, tmp_path, **settings)
    assert half.student.dtype == jnp.bfloat16
    assert cast("Any", half.teacher).model.head().weight.dtype == jnp.bfloat16
    found = losses(half)
    expected = losses(trainer(False, student_dir, teacher_dir, tmp_path, **settings))
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=0.01)
    assert expected[-1] < 0.95 * expected[0]
    assert floating(half.state) == {jnp.dtype(jnp.float32)}


def test_steps_too_small_for_bfloat16_are_not_lost(
    student_dir: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    rate, steps = 1e-6, 4
    made = trainer(True, student_dir, teacher_dir, tmp_path, learning_rate=rate)
    before = np.asarray(made.student.norm.weight[...])  # ones, whose neighbours are 2⁻⁸ away
    assert np.all(before == 1.0)
    losses(made)
    moved = np.abs(np.asarray(made.student.norm.weight[...]) - before)
    assert moved.max() < 2.0**-9
    # Adam's steps are about the learning rate's size, all in one direction at first.
    assert np.median(moved) > 0.5 * steps * rate


def floating(state: TrainState) -> set[Any]:
    """The types of all floating-point arrays that a step changes."""
    leaves = jax.tree.leaves((state.trained, state.optimizer))
    return {leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}
