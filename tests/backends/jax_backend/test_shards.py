"""JAX: logits sharded over a mesh axis give the loss and the gradients of the whole ones."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import amidmath as am

SHARDS = 4
ROWS, SIZE = 6, 16
MASK = np.array([True, False, True, True, False, True])
LABELS = np.array([1, 10, -100, 7, 15, 0])  # in every shard one
KNOBS = {
    "alpha": np.array([-3.0, 0.0, 1.0, 3.0, np.inf, -1.0]),
    "lam": np.array(0.3),
}


def logits():
    rng = np.random.default_rng(3)
    return tuple(3.0 * rng.normal(size=(ROWS, SIZE)) for _ in "st")


def rows_of_all_kinds():
    """The top outcome here, there, or alike in several shards; shards and entries at -inf."""
    student, teacher = logits()
    student[0, 3] = teacher[0, 3] = student[1, 9] = teacher[1, 10] = 30.0
    student[2, [2, 5, 6, 15]] = teacher[2, [2, 5, 6, 15]] = 9.0
    student[3, 12:] = teacher[3, :4] = -np.inf
    student[4, 4:8] = teacher[4, 4:8] = -np.inf
    teacher[5, 1] = -np.inf
    return student, teacher


def job(
    loss,
    way="within",
    *,
    of=logits,
    dtype="float64",
    knobs=None,
    mask=None,
    rows_sharded=False,
    rows_per_chunk=256,
    labels=None,
):
    """What the devices do; ``way`` is how they differentiate."""
    student, teacher = (x.astype(dtype) for x in of())
    knobs = {name: knob.astype(dtype) for name, knob in (knobs or {}).items()}
    here = {"loss": loss, "way": way, "student": student, "teacher": teacher, "knobs": knobs}
    options = {"mask": mask, "rows_sharded": rows_sharded, "rows_per_chunk": rows_per_chunk}
    return here | options | {"labels": labels, "label_weight": 0.3}


def amid(divergence, order, alpha):
    return am.AMiD(divergence, order=order, alpha=alpha, lam=0.3)


AB = am.AlphaBeta(0.2, 0.7)
GKD = 0.5 * am.AMiD(lam=0.5) + 0.5 * am.AMiD(order="qr", lam=0.5)
JOBS = {
    "KL, pr": job(amid(am.KL(), "pr", -1.0)),
    "KL, qr, in float32": job(amid(am.KL(), "qr", 1.0), dtype="float32"),
    "AB, rp": job(amid(AB, "rp", 3.0)),
    "Renyi, rq": job(amid(am.Renyi(2.0), "rq", 0.0)),
    "concrete score, rp": job(amid(am.ConcreteScore("x", "uniform"), "rp", -1.0)),
    "weighted sum": job(GKD, mask=MASK),
    "alpha-Jensen-Shannon": job(am.AlphaJensenShannon(0.3, 0.4, temperature=2.0)),
    "all kinds of rows": job(amid(am.SquaredHellinger(), "rq", 3.0), of=rows_of_all_kinds),
    "chunks": job(amid(am.KL(), "qr", -1.0), rows_per_chunk=4, mask=MASK),
    "knobs, in float32": job(am.AMiD(order="pr"), knobs=KNOBS, dtype="float32", mask=MASK),
    "around": job(am.AMiD(order="rq"), "around", knobs=KNOBS),
    "around, unchecked": job(am.AMiD(order="rq"), "around, unchecked", knobs=KNOBS),
    "method": job(am.AMiD(order="qr"), "method", knobs=KNOBS, mask=MASK),
    "method, unchecked": job(am.AMiD(order="qr"), "method, unchecked"),
    "forward": job(am.AMiD(order="qr"), "forward"),
    "mapped and rematerialised": job(am.AMiD(order="qr"), "mapped"),
    "rows sharded": job(am.AMiD(order="qr"), knobs=KNOBS, rows_sharded=True),
    "rows sharded, around": job(am.AMiD(order="qr"), "around", knobs=KNOBS, rows_sharded=True),
    "explicit": job(am.AMiD(order="qr"), "explicit"),
    "labels": job(GKD, labels=LABELS, mask=MASK),
    "labels, in float32": job(am.AMiD(), labels=LABELS, dtype="float32"),
    "labels and knobs, chunks": job(
        am.AMiD(order="rq"), "around", knobs=KNOBS, labels=LABELS, rows_per_chunk=4
    ),
    "labels, method": job(am.AMiD(), "method", knobs=KNOBS, labels=LABELS, mask=MASK),
    "labels, unchecked": job(am.AMiD(), "method, unchecked", labels=LABELS),
    "labels, forward": job(am.AMiD(order="qr"), "forward", labels=LABELS),
    "labels, explicit": job(am.AMiD(order="qr"), "explicit", labels=LABELS),
    "labels, all kinds of rows": job(am.AMiD(), of=rows_of_all_kinds, labels=LABELS),
    # What the documentation says of whole arrays: the compiler does the same to the loss itself.
    "plain": job(am.AMiD(order="qr"), "plain"),
}

# Unchecked, JAX adds up over the other axis too; in forward mode every logit has a tangent.
UNLIKE = ("explicit", "forward", "around, unchecked")
LOOKED_AT = [n for n in JOBS if n.removeprefix("labels, ") not in UNLIKE]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the eight devices made of the jobs."""
    folder = tmp_path_factory.mktemp("devices")
    with (folder / "jobs.pkl").open("wb") as file:
        pickle.dump(JOBS, file)
    script = Path(__file__).with_name("shard_devices.py")
    run = subprocess.run(
        [sys.executable, script, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    with (folder / "done.pkl").open("rb") as file:
        return pickle.load(file)


def whole(here):
    """The loss of the whole logits by NumPy, in double precision, and its gradients."""
    knobs = {name: knob.astype("float64") for name, knob in here["knobs"].items()}
    loss = dataclasses.replace(here["loss"], **knobs) if knobs else here["loss"]
    student, teacher = (here[n].astype("float64") for n in ("student", "teacher"))
    wrt = ("student", "teacher", *knobs)
    value, grads = loss.value_and_grad(student, teacher, here["mask"], wrt=wrt)
    if here["labels"] is None:
        return value, grads
    added, by_label = cross_entropy(student, here)
    return value + added, (grads[0] + by_label, *grads[1:])


def cross_entropy(student, here):
    """The mean over the positions kept of −log p(label), times the weight, and its gradient."""
    kept = np.ones(ROWS, bool) if here["mask"] is None else here["mask"]
    rows = np.flatnonzero(kept & (here["labels"] >= 0))
    at, factor = (rows, here["labels"][rows]), here["label_weight"] / kept.sum()
    logs = student - np.logaddexp.reduce(student, axis=-1, keepdims=True)
    grad = np.zeros_like(student)
    grad[rows] = factor * np.exp(logs[rows])
    grad[at] -= factor
    return -factor * logs[at].sum(), grad


def close(got, wanted, eps):
    assert got.shape == wanted.shape
    atol = 16 * eps * np.abs(wanted).max()
    np.testing.assert_allclose(got, wanted, rtol=16 * eps, atol=atol)


@pytest.mark.parametrize("name", JOBS)
def test_value_and_gradients_are_those_of_the_whole(results, name):
    here, done = JOBS[name], results[name]
    assert "error" not in done, done["error"]
    eps = np.finfo(here["student"].dtype).eps
    value, grads = whole(here)
    assert done["value"].dtype == here["student"].dtype
    close(done["value"], value, eps)
    for got, wanted in zip(done["grads"], grads, strict=True):
        assert got.dtype == here["student"].dtype
        close(got, wanted, eps)


@pytest.mark.parametrize("name", LOOKED_AT)
def test_only_numbers_a_row_travel(results, name):
    messages = results[name]["messages"]
    rows = ROWS // 2 if JOBS[name]["rows_sharded"] else ROWS
    assert {kind for kind, _ in messages} == {"all-reduce", "all-gather"}
    for kind, size in messages:
        assert size <= rows * (SHARDS if kind == "all-gather" else 1)


def test_an_axis_that_is_not_bound(results):
    for said in results["unbound"]:
        assert "ranks must name a mesh axis that an enclosing jax.shard_map goes over" in said
        assert "got 'model', which is not bound here" in said
    assert len(results["unbound"]) == 2
