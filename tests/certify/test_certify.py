"""A short certification, and that the certifier finds what is wrong."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter

import mpmath
import numpy as np
import pytest
from certify import __main__ as command
from certify import library, measure, report
from certify.oracle import Loss, truth
from certify.subjects import DTYPES, EXECUTORS, REGISTRY, Point, plan

SEED = 1
# make certify asks for the same bounds everywhere. Here it is of results that a step of training
# could notice, at parameters that somebody might choose.
NOTICEABLE = 1e-6
LARGEST_ALPHA = 50.0


def short_plan(executor="reference"):
    """A few rounds of every kind of divergence, at its first example.

    Where every point is compiled first it is one round, of one dtype in turn for each divergence.
    """
    points = plan(SEED, budget=40.0, largest=3, executor=executor)
    points = [p for p in points if p.kind == "mean" or p.params == REGISTRY[p.name].examples[0]]
    if executor == "reference":
        return points
    return [p for p in points if p.dtype == DTYPES[sorted(REGISTRY).index(p.name) % len(DTYPES)]]


@pytest.fixture(scope="module", params=EXECUTORS)
def records(request):
    """What every executor is held to: the same points, the same bounds."""
    if request.param == "compiled":
        pytest.importorskip("llvmlite")
    return [record for point in short_plan(request.param) for record in measure.measure(point)]


def test_finite_and_not_negative(records):
    wrong = [report.describe(r) for r in records if r.non_finite or r.negative]
    assert not wrong, "\n".join(wrong)


def is_usual(record):
    point = record.point
    if point.kind == "mean":
        return True
    alpha = abs(point.alpha)
    return record.size >= NOTICEABLE and (alpha <= LARGEST_ALPHA or math.isinf(alpha))


def test_bounds(records):
    usual = [r for r in records if is_usual(r)]
    wrong = [r for r in usual if not r.reached]
    assert min(Counter(r.point.kind for r in usual).values()) > 20
    assert not wrong, "\n".join(map(report.describe, wrong))


def test_every_divergence_and_dtype_is_planned():
    points = short_plan()
    planned = {(p.kind, p.name, p.dtype) for p in points}
    assert planned >= {(k, n, d) for k in ("divergence", "loss") for n in REGISTRY for d in DTYPES}
    assert points == short_plan()


@pytest.mark.parametrize("executor", sorted(set(EXECUTORS) - {"reference"}))
def test_every_divergence_is_planned_for_every_executor(executor):
    points = short_plan(executor)
    every = set(itertools.product(("divergence", "loss"), REGISTRY))
    assert {(p.kind, p.name) for p in points} == every
    assert {p.dtype for p in points} == set(DTYPES)
    assert {p.executor for p in points} == {executor}


def test_executors_are_held_to_the_same_points():
    """But for the means, which the core alone computes."""
    core = {dataclasses.replace(p, executor="compiled") for p in short_plan() if p.kind != "mean"}
    assert set(short_plan("compiled")) <= core


def point(**changes):
    plain = Point("loss", "kl", "float64", "spread 1", 3, (1,), (), "pr", 0.0, 0.3)
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda a: setattr(a, "value", a.value * (1 + 1e-13)), "error"),
        (lambda a: setattr(a, "value", a.value * math.nan), "non_finite"),
        (lambda a: setattr(a, "value", -a.value), "negative"),
        (lambda a: a.gradients["student"].__imul__(1 + 1e-13), "error"),
        (lambda a: a.gradients["teacher"].__setitem__(0, math.inf), "non_finite"),
    ],
    ids=["value", "NaN", "negative", "gradient", "infinite gradient"],
)
def test_a_wrong_answer_is_found(monkeypatch, change, finding):
    def call(at):
        answer = library.call(at)
        change(answer)
        return answer

    assert all(r.reached for r in measure.measure(point()))
    monkeypatch.setattr(measure, "call", call)
    (wrong,) = [r for r in measure.measure(point()) if not r.reached]
    assert getattr(wrong, finding) > (16 if finding == "error" else 0)


def test_a_call_that_raises_is_a_failure(monkeypatch):
    def call(at):
        raise ValueError("no")

    monkeypatch.setattr(measure, "call", call)
    (record,) = measure.measure(point())
    assert not record.reached
    assert record.note == "ValueError: no"


def exact(*values):
    return tuple(mpmath.mpf(v) for v in values)


def test_oracle_gradient_and_forced_part():
    """KL(p‖q) at λ = 0: the gradient is q - p, the Hessian diag(q) - qqᵀ."""
    student, teacher = exact(0, 1, -1), exact(2, 0, 0)
    loss = Loss(REGISTRY["kl"].definition, (), 3, "pr")
    deltas = [1e-16, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    rng = np.random.default_rng(0)
    found = truth(loss, (*student, *teacher, *exact(-1, 0)), deltas, range(3), 1e-300, rng)
    p, q = ([mpmath.exp(v) for v in row] for row in (teacher, student))
    p, q = ([v / mpmath.fsum(row) for v in row] for row in (p, q))
    assert found.value == pytest.approx(
        float(mpmath.fsum(u * mpmath.log(u / v) for u, v in zip(p, q, strict=True))), rel=1e-14
    )
    for i in range(3):
        assert float(found.gradient[i]) == pytest.approx(float(q[i] - p[i]), rel=1e-13)
        second = float(q[i] * ((i == 0) - q[0]))
        assert float(found.forced_gradient[i]) == pytest.approx(1e-16 * abs(second), rel=1e-6)
    assert float(found.forced_value) == pytest.approx(1e-16 * abs(float(q[0] - p[0])), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "x", "y", "infinite"),
    [
        ("kl", (0.0, 0.0), (0.0, -mpmath.inf), True),
        ("kl", (0.0, -mpmath.inf), (0.0, 0.0), False),
        ("kl", (0.0, -mpmath.inf), (0.0, -mpmath.inf), False),
        ("squared_hellinger", (0.0, -mpmath.inf), (-mpmath.inf, 0.0), False),
        ("bhattacharyya", (0.0, -mpmath.inf), (-mpmath.inf, 0.0), True),
    ],
)
def test_oracle_zeros(name, x, y, infinite):
    loss = Loss(REGISTRY[name].definition, (), 2)
    found = truth(loss, exact(*x, *y), [0.0] * 4, [], 1e-300, np.random.default_rng(0))
    assert (found.value == mpmath.inf) == infinite


@pytest.fixture
def outcome(monkeypatch):
    """What the command finds at every point."""

    def set_outcome(**fields):
        monkeypatch.setattr(
            command,
            "measure",
            lambda at: [measure.Record(at, "value", "", **{"raw": 1.0, "bound": 16.0, **fields})],
        )

    return set_outcome


OPTIONS = ["--budget-minutes", "0.01", "--workers", "1", "--largest", "2", "--only", "mean log"]


def test_command_writes_the_report(outcome, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome(error=0.5, size=1.0)
    out = tmp_path / "accuracy.md"
    assert command.main([*OPTIONS, "--out", str(out)]) == 0
    assert "| log_falpha_mean | float32 | value |" in out.read_text()
    data = json.loads(report.results_path(out).read_text())
    assert data["failures"] == []
    assert {row["dtype"] for row in data["rows"]} == {"float64", "float32", "bfloat16"}
    assert "0 beyond their bounds" in capsys.readouterr().out
    assert command.main([*OPTIONS, "--only", "no such thing"]) == 2


def test_the_compiled_kernel_has_a_report_of_its_own(outcome, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome(error=0.5, size=1.0)
    options = ["--budget-minutes", "0.01", "--workers", "1", "--largest", "2"]
    assert command.main([*options, "--backend", "compiled"]) == 0
    text = command.OUT["compiled"].read_text()
    assert text.startswith("# Accuracy of the compiled kernel")
    assert "--backend compiled" in text
    assert "Means and mixtures" not in text
    assert not command.OUT["reference"].exists()


def test_failures_are_listed(outcome, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome(error=50.0, size=1.0, note="off")
    out = tmp_path / "accuracy.md"
    assert command.main([*OPTIONS, "--out", str(out)]) == 1
    assert "off by 50 eps of 1" in capsys.readouterr().out
    assert "**no**, 0.0 %" in out.read_text()
    assert json.loads(report.results_path(out).read_text())["failures"]
