"""The memory estimate against known sizes and a measured peak."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import tiny_model

from amidmath.integrations.torch_loop.run.memory import Plan, estimate
from amidmath.integrations.torch_loop.run.model_shape import Shape

HELPER = Path(__file__).parents[3] / "helpers" / "peak_memory.py"
PLAN = Plan(rows=4, length=32, accumulation=2, steps=10)


@pytest.fixture
def student() -> Shape:
    return Shape.of(tiny_model(2, 0))


def test_what_is_known_is_exact(student: Shape) -> None:
    model = tiny_model(2, 0)
    count = sum(p.numel() for p in model.parameters())
    parts = estimate(student, Shape.of(tiny_model(3, 1)), PLAN).parts
    teacher = sum(p.numel() for p in tiny_model(3, 1).parameters())
    assert parts["student's weights"] == parts["gradients"] == 4 * count
    assert parts["optimiser states"] == 8 * count
    assert parts["teacher's weights"] == 4 * teacher
    assert parts["logits of a chunk"] == 4 * 32 * 2 * 384 * 4


@pytest.mark.parametrize(
    ("optimizer", "bytes_each"),
    [("adamw_torch_fused", 8), ("sgd", 0), ("lion_32bit", 4), ("adamw_bnb_8bit", 2)],
)
def test_optimisers(student: Shape, optimizer: str, bytes_each: int) -> None:
    found = estimate(student, None, replace(PLAN, optimizer=optimizer))
    assert found.parts["optimiser states"] == bytes_each * student.trainable
    assert not found.notes


def test_an_unknown_optimiser_is_said(student: Shape) -> None:
    text = estimate(student, None, replace(PLAN, optimizer="newton")).describe()
    assert "note: the states of optimiser newton are not known" in text


def test_what_does_not_train_has_no_gradient() -> None:
    model = tiny_model(2, 0)
    model.get_input_embeddings().requires_grad_(False)
    shape = Shape.of(model)
    parts = estimate(shape, None, PLAN).parts
    assert parts["gradients"] == 4 * shape.trainable < parts["student's weights"]


def test_engines(student: Shape) -> None:
    single = estimate(student, student, PLAN).parts
    ddp = estimate(student, student, replace(PLAN, processes=4, engine="ddp")).parts
    fsdp = estimate(student, student, replace(PLAN, processes=4, engine="fsdp")).parts
    assert ddp["gradients"] == 2 * single["gradients"]
    for name in ("student's weights", "gradients", "optimiser states", "teacher's weights"):
        assert fsdp[name] == single[name] // 4
    assert fsdp["weights gathered for use"] == 3 * student.largest_bytes
    with pytest.raises(ValueError, match="engine must be"):
        replace(PLAN, engine="zero")


def test_evaluations_count(student: Shape) -> None:
    few, many = (estimate(student, student, replace(PLAN, eval_rows=n)) for n in (1, 10_000))
    assert few.total == sum(few.parts.values()) > few.evaluating
    assert many.total == many.evaluating > sum(many.parts.values())
    assert "with 10000 sequences at a time" in many.describe()
    whole = estimate(replace(student, whole_logits=True), student, PLAN)
    assert whole.parts["whole logits and their gradients"] == 4 * 32 * 4 * 4 * 384
    assert "note: the student makes logits in a way of its own" in whole.describe()


def test_the_description(student: Shape) -> None:
    text = estimate(student, None, PLAN).describe()
    assert f"{student.parameters:,} parameters, {student.trainable:,} of them trained" in text
    assert "10 of 8 sequences, up to 256 tokens each" in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_against_a_measured_peak(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, HELPER, tmp_path, "8", "256", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0.88 < found["estimated"] / found["measured"] < 1.12
