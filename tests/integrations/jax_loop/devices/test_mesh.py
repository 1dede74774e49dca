"""A student that trains on eight devices is the one that trains on one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from tiny import save, tiny_model, write_jsonl

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.devices.mesh import (
    AXES,
    kept_whole,
    make_mesh,
    parse_mesh,
    place,
)
from amidmath.integrations.jax_loop.run.header import _not_divided
from amidmath.integrations.jax_loop.run.models import check_tensor_axis
from amidmath.integrations.jax_loop.settings.config import JaxConfig

ROWS = [
    {"prompt": f"{name}: ", "completion": f"an answer of {n} words"}
    for n, name in enumerate("abcdefghijklmnopqrstuvwxyz")
]
LABELS = {
    "label_weight": 0.5,
    "gradient_accumulation_steps": 2,
    "schedule": ["alpha=overlap_token:-5:1"],
}
# Devices, --mesh, rows on each, and what else is set. Rows of a step are eight in all.
MESHES: dict[str, tuple[int, str, int, dict[str, Any]]] = {
    "one": (1, "data=1", 8, {}),
    "fsdp": (8, "fsdp=-1", 1, {}),
    "all": (8, "data=2,fsdp=2,tensor=2", 2, {}),
    "labels, one": (1, "data=1", 4, LABELS),
    "labels, several": (8, "data=4,tensor=2", 1, LABELS),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of a run on every mesh."""
    folder = tmp_path_factory.mktemp("mesh")
    sizes = {"vocab_size": 384, "num_attention_heads": 4, "num_key_value_heads": 2}
    student = save(tiny_model(2, 2, **sizes), folder / "student")
    teacher = save(tiny_model(3, 1, **sizes), folder / "teacher")
    data = write_jsonl(folder / "rows.jsonl", ROWS)
    jobs = {
        name: {
            "devices": devices,
            "inspected": name == "all",
            "student": str(student),
            "teacher": str(teacher),
            "data": str(data),
            "config": {
                "output_dir": str(folder / "run"),
                "mesh": mesh,
                "per_device_train_batch_size": rows,
                "per_device_eval_batch_size": rows,
                "max_steps": 4,
                "learning_rate": 1e-2,
                "max_length": 48,
                "logging_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": 4,
                "save_strategy": "no",
                "alpha": None if "schedule" in changes else 0.0,
                "gradient_checkpointing": False,
                "disable_tqdm": True,
                **changes,
            },
        }
        for name, (devices, mesh, rows, changes) in MESHES.items()
    }
    (folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("on_devices.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True, timeout=600)
    done: dict[str, dict[str, Any]] = json.loads((folder / "done.json").read_text())
    return done


@pytest.mark.parametrize(
    ("one", "several", "devices"),
    [
        ("one", "fsdp", 8),
        ("one", "all", 8),
        ("labels, one", "labels, several", 8),
    ],
)
def test_a_mesh_trains_as_one_device(
    runs: dict[str, dict[str, Any]], one: str, several: str, devices: int
) -> None:
    expected, found = runs[one], runs[several]
    assert found["parts"] == [devices]
    assert found["programs"] == expected["programs"] == 1
    assert len(found["lines"]) == len(expected["lines"]) == 5
    for line, other in zip(found["lines"], expected["lines"], strict=True):
        for name in line.keys() & {"loss", "grad_norm", "eval_loss"}:
            assert line[name] == pytest.approx(other[name], abs=1e-5, rel=1e-4)
    assert found["sums"] == pytest.approx(expected["sums"], rel=1e-4)
    for model in ("teacher", "student"):
        assert found["quality"][model] == pytest.approx(
            expected["quality"][model], rel=1e-4, abs=1e-6
        )


def test_weights_are_shared_out(runs: dict[str, dict[str, Any]]) -> None:
    assert runs["fsdp"]["bytes"] < 0.2 * runs["one"]["bytes"]
    assert runs["all"]["bytes"] < 0.4 * runs["one"]["bytes"]
    assert runs["labels, several"]["bytes"] < 0.6 * runs["one"]["bytes"]


def test_no_device_looks_up_the_rows_of_all(runs: dict[str, dict[str, Any]]) -> None:
    """Left to itself, XLA gathers the embeddings of the whole batch, and divides them anew."""
    assert runs["all"]["look-ups"] == ["all-reduce"]  # over the parts of the vocabulary


def test_the_mesh_is_what_the_flag_says() -> None:
    assert parse_mesh("data=2,fsdp=-1", 8) == {"data": 2, "fsdp": 4, "tensor": 1}
    assert parse_mesh("tensor=8", 8) == {"data": 1, "fsdp": 1, "tensor": 8}
    for text, message in {
        "rows=8": "among data, fsdp, tensor",
        "data=2,data=4": "once each",
        "data=many": "whole number",
        "data=-1,fsdp=-1": "one of them may be -1",
        "data=3": "does not divide 8 devices",
        "data=0": "must be positive",
    }.items():
        with pytest.raises(InputError, match=message):
            parse_mesh(text, 8)


def test_axes_that_do_not_divide_stay_whole() -> None:
    mesh = make_mesh("data=-1", jax.devices()[:1])
    assert place(mesh, ("layer", "embed", "mlp"), (2, 8, 6)).spec == P(None, "fsdp", "tensor")
    several = jax.sharding.AbstractMesh((1, 2, 4), AXES)
    assert place(several, ("layer", "embed", "mlp"), (2, 8, 6)).spec == P(None, "fsdp", None)
    parameters = {
        "up": nnx.Param(jnp.zeros((2, 8, 6)), axes=("layer", "embed", "mlp")),
        "heads": nnx.Param(jnp.zeros((2, 8, 4)), axes=("layer", "embed", "heads")),
        "norm": nnx.Param(jnp.zeros((7,)), axes=("embed",)),
        "scale": nnx.Param(jnp.zeros((3,)), axes=(None,)),
    }
    total = 2 * 8 * 6 + 2 * 8 * 4 + 7 + 3
    found = kept_whole(several, parameters)
    assert found == {
        "tensor": (1, pytest.approx(2 * 8 * 6 / total)),
        "fsdp": (1, pytest.approx(7 / total)),
    }
    assert _not_divided(several, {"fsdp": found["fsdp"]}) == (
        "1 of the student's parameters (4.1% of its bytes) along fsdp: their dimensions are no "
        "multiples of 2"
    )
    assert kept_whole(mesh, parameters) == {}


def test_the_vocabulary_must_divide() -> None:
    config = JaxConfig(mesh="tensor=2")
    check_tensor_axis(config, 2, 384)
    check_tensor_axis(config, 1, 385)
    with pytest.raises(InputError, match=r"--mesh tensor=2: 385 logits .* leave tensor out"):
        check_tensor_axis(config, 2, 385)
    with pytest.raises(InputError, match=r"--mesh tensor=2: a cache's lists"):
        check_tensor_axis(JaxConfig(mesh="tensor=2", teacher_cache="cache"), 2, 384)
