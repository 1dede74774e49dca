"""The JAX script and the JAX losses where torch is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file
from tiny import words, write_jsonl

# torch is installed here, but is not found.
PROGRAM = """
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *path: None if name == "torch" else found(name, *path)

from transformers.utils import is_torch_available

assert not is_torch_available()
import jax.numpy as jnp

from amidmath.integrations import jax_distill
from amidmath.integrations.plugins.jax_losses import am_loss

assert jax_distill.main(sys.argv[1:]) == 0
assert am_loss(jnp.zeros((2, 4)), jnp.arange(8.0).reshape(2, 4)).shape == (2,)
assert not [name for name in sys.modules if name.split(".")[0] == "torch"]
"""


def test_a_run_without_torch(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rows = [{"prompt": f"{name}: ", "completion": "an answer"} for name in "abcd"]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {
        "model_name_or_path": student_dir,
        "teacher_model_name_or_path": teacher_dir,
        "dataset_name": data,
        "eval_dataset_name": data,
        "output_dir": run,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "max_length": 24,
        "policy": "mixed",
        "student_fraction": 0.5,
        "max_new_tokens": 4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
    }
    command = words(settings)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2]
    assert "student after" in json.loads((run / "results.json").read_text())
    assert (run / "checkpoint-2" / "complete.json").exists()
    assert (run / "student" / "README.md").exists()
    assert load_file(run / "student" / "model.safetensors")
    assert (run / "curves.png").exists()
