"""torch: logits sharded over two processes give the loss and the gradients of the whole ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import amidmath as am

RANKS = 2
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-5.0, -1.0, 0.0, 1.0, 3.0, float("inf"))
DIVERGENCES = {
    "KL": am.KL(),
    "AB(.2,.7)": am.AlphaBeta(0.2, 0.7),
    "Renyi(2)": am.Renyi(2.0),
    "TV": am.TotalVariation(),
    "Gamma(1)": am.Gamma(1.0),
    "score(x,uniform)": am.ConcreteScore("x", "uniform"),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def logits(dtype=torch.float64, shape=(5, 13), seed=3):
    make = torch.Generator().manual_seed(seed)
    return tuple(
        (3.0 * torch.randn(shape, generator=make, dtype=torch.float64)).to(dtype) for _ in "st"
    )


def job(
    loss,
    *,
    student=None,
    teacher=None,
    dtype=torch.float64,
    sizes=(7, 6),
    thorough=True,
    **options,
):
    """What the ranks do; thorough for all ways to call the loss, watched over."""
    if student is None:
        student, teacher = logits(dtype)
    options |= {"sizes": sizes, "thorough": thorough}
    return {"loss": loss, "student": student, "teacher": teacher, **options}


def knobs(dtype=torch.float64):
    alpha = torch.tensor([-3.0, 0.0, 1.0, 3.0, float("inf")], dtype=dtype)
    return {"alpha": alpha, "lam": torch.tensor([0.3], dtype=dtype)}


def with_holes():
    """Entries at -inf: a whole shard of one side or of both, and padding."""
    student, teacher = logits()
    student[0, 7:] = teacher[1, 7:] = -torch.inf
    student[2, 7:] = teacher[2, 7:] = -torch.inf
    student[3, 11:] = teacher[3, 11:] = -torch.inf
    student[4, :7] = teacher[4, :7] = -torch.inf
    return {"student": student, "teacher": teacher}


def with_peaks():
    """Rows that are nearly all of one outcome, here or there, and rows of several alike."""
    student, teacher = logits()
    for x in (student, teacher):
        x[0, 3] = x[1, 9] = 30.0
        x[2:, [2, 5, 7, 12]] = 9.0
    teacher[3, 2], teacher[4, 9] = 1.0, 30.0
    return {"student": student, "teacher": teacher}


def with_nan_in(rows):
    student, teacher = logits()
    student[rows, 3] = torch.nan
    teacher[rows, 12] = torch.inf
    return {"student": student, "teacher": teacher}


MASK = torch.tensor([True, False, True, True, False])
KEPT = {"mask": MASK, "reduction": "none", "cotangent": torch.tensor([1.0, 2.0, -3.0, 0.5, 1.0])}
LABELS = torch.tensor([1, 12, -100, 9, 6])  # in either part, wherever the vocabulary is cut
LABELLED = {"labels": LABELS, "label_weight": 0.3}
GKD = 0.5 * am.AMiD(lam=0.5) + 0.5 * am.AMiD(order="qr", lam=0.5)

JOBS = {
    f"{divergence}-{order}-{alpha}-{dtype}": job(
        am.AMiD(DIVERGENCES[divergence], order=order, alpha=alpha, lam=0.3),
        dtype=DTYPES[dtype],
        thorough=dtype == "float64" and order == "qr" and alpha == 3.0,
    )
    for dtype in DTYPES
    for divergence in DIVERGENCES
    for order in ORDERS
    for alpha in (ALPHAS if divergence in ("KL", "AB(.2,.7)") else (-1.0, 3.0))
    if dtype == "float64" or (order in ("pr", "rq") and alpha in (-1.0, 3.0))
} | {
    "weighted sum": job(GKD, **KEPT),
    "alpha-Jensen-Shannon": job(am.AlphaJensenShannon(0.3, 0.4, temperature=2.0)),
    "detached": job(am.AMiD(order="rq", detach_assistant=True, temperature=0.5)),
    "made of others": job(am.AMiD(am.Symmetrized(am.Dual(am.SquaredHellinger())))),
    "mask": job(am.AMiD(), mask=MASK),
    "nothing kept": job(am.AMiD(), mask=torch.zeros(5, dtype=torch.bool)),
    "masked NaN": job(am.AMiD(), **with_nan_in(~MASK), mask=MASK),
    "denominator": job(am.AMiD(), mask=MASK, denominator=torch.tensor(7.0)),
    "sum": job(am.AMiD(), reduction="sum"),
    "knobs": job(am.AMiD(order="rq", **knobs()), **KEPT),
    "knobs of a sum": job(am.AMiD(**knobs()) + am.AMiD(order="qr", **knobs())),
    "more axes": job(
        am.AMiD(alpha=torch.tensor([[0.5], [2.0]], dtype=torch.float64), lam=0.2),
        student=logits(shape=(2, 3, 13))[0],
        teacher=logits(shape=(2, 3, 13))[1],
    ),
    "bfloat16": job(am.AMiD(order="qr"), dtype=torch.bfloat16),
    "one entry": job(am.AMiD(order="qr"), sizes=(12, 1)),
    "no rows": job(am.AMiD(), student=logits()[0][:0], teacher=logits()[1][:0]),
    "chunks": job(am.AMiD(order="qr", **knobs()), **KEPT, rows_per_chunk=2, sizes=(12, 1)),
    "mesh": job(am.AMiD(order="qr"), mesh=True),
    "checkpointed": job(am.AMiD(order="qr"), checkpointed=True),
    "compiled": job(am.AMiD(order="qr"), compiled=True),
    "DTensor": job(am.AMiD(order="qr"), dtensor=True, mask=MASK),
    "DTensor of more axes": job(
        GKD,
        student=logits(shape=(2, 3, 13))[0],
        teacher=logits(shape=(2, 3, 13))[1],
        dtensor=True,
    ),
    "labels": job(am.AMiD(order="qr"), **LABELLED, sizes=(9, 4)),
    "labels of one entry": job(am.AMiD(am.Renyi(2.0)), **LABELLED, sizes=(12, 1), mask=MASK),
    "labels and knobs": job(
        am.AMiD(order="rq", **knobs()),
        **KEPT,
        labels=LABELS % 13,
        label_weight=2.0,
        ignore_index=6,
        rows_per_chunk=2,
        sizes=(1, 12),
    ),
    "labels in float32": job(
        GKD, **LABELLED, dtype=torch.float32, mask=MASK, denominator=torch.tensor(7.0)
    ),
    "labels in bfloat16": job(am.AMiD(), **LABELLED, dtype=torch.bfloat16, reduction="sum"),
    "labels of holes": job(am.AMiD(), **with_holes(), labels=torch.tensor([1, 8, 3, 9, 10])),
    "labels, masked NaN": job(am.AMiD(), **with_nan_in(~MASK), **LABELLED, mask=MASK),
    "labels, compiled": job(am.AMiD(order="qr"), **LABELLED, sizes=(9, 4), compiled=True),
    "labels of more axes": job(
        am.AMiD(),
        student=logits(shape=(2, 3, 13))[0],
        teacher=logits(shape=(2, 3, 13))[1],
        labels=torch.tensor([[0, 12, 7], [-100, 6, 3]]),
    ),
    "labels of a DTensor": job(am.AMiD(order="qr"), **LABELLED, dtensor=True, mask=MASK),
    "NaN": job(am.AMiD(order="qr"), **with_nan_in([1, 3]), reduction="none", thorough=False),
    "misplaced": "misplaced",
}
for order in ORDERS:
    for alpha in (-1.0, 1.0, 3.0):
        for divergence in (am.AlphaBeta(0.2, 0.7), am.SquaredHellinger()):
            here = job(
                am.AMiD(divergence, order=order, alpha=alpha, lam=0.3),
                **(with_peaks() if isinstance(divergence, am.AlphaBeta) else with_holes()),
                thorough=False,
            )
            JOBS[f"{divergence.name}-of-rows-{order}-{alpha}"] = here
COMPARED = [name for name in JOBS if name not in ("NaN", "misplaced")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank made of the jobs."""
    folder = tmp_path_factory.mktemp("ranks")
    with (folder / "jobs.pkl").open("wb") as file:
        pickle.dump(JOBS, file)
    script = Path(__file__).with_name("shard_rank.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(RANKS), folder],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(said)
    done = []
    for rank in range(RANKS):
        with (folder / f"{rank}.pkl").open("rb") as file:
            done.append(pickle.load(file))
    return done


def whole(name):
    """The loss of the whole logits in one process, in double precision, and its gradients."""
    here = JOBS[name]
    double = {n: here[n].double().requires_grad_() for n in ("student", "teacher")}
    parameters = [knob.requires_grad_() for knob in here["loss"].knobs.values()]
    options = {n: here[n] for n in ("mask", "reduction", "denominator") if n in here}
    value = here["loss"](*double.values(), **options) + of_labels(here, double["student"])
    cotangent = here.get("cotangent", torch.ones_like(value))
    grads = torch.autograd.grad(value, [*double.values(), *parameters], cotangent)
    return value, grads


def of_labels(here, student):
    """What labels add to the value, by torch's own cross-entropy."""
    if "labels" not in here:
        return 0.0
    labels, mask = here["labels"], here.get("mask", torch.tensor(True))
    ignored = here.get("ignore_index", -100)
    labels = torch.where(mask, labels, ignored)
    values = cross_entropy(
        torch.where(mask[..., None], student, 0.0).flatten(0, -2),
        labels.flatten(),
        reduction="none",
        ignore_index=ignored,
    )
    values = here.get("label_weight", 1.0) * values.reshape(labels.shape)
    if here.get("reduction", "mean") == "none":
        return values
    count = mask.expand(labels.shape).sum() if "reduction" not in here else 1
    return values.sum() / here.get("denominator", count)


def of_ranks(results, name):
    for rank, done in enumerate(results):
        assert name in done, f"rank {rank} stopped before"
        assert "error" not in done[name], done[name]["error"]
    return [done[name] for done in results]


def close(got, wanted, eps):
    scale = wanted.abs().max().item() if wanted.numel() else 0.0
    torch.testing.assert_close(
        got.double(), wanted.double(), rtol=16 * eps, atol=16 * eps * scale, equal_nan=False
    )


@pytest.mark.parametrize("name", COMPARED)
def test_value_and_gradients_are_those_of_the_whole(results, name):
    here = JOBS[name]
    eps = torch.finfo(here["student"].dtype).eps
    value, grads = whole(name)
    ranks = of_ranks(results, name)
    for done in ranks:
        assert torch.equal(done["value"], ranks[0]["value"])
        close(done["value"], value, min(eps, torch.finfo(torch.float32).eps))
    for kind in ("grads", "direct"):
        if kind in ranks[0] and not (kind == "direct" and "cotangent" in here):
            check(kind, ranks, grads, here, eps)
    if here["thorough"]:
        for done in ranks:
            assert torch.equal(done["without"], done["value"])
            assert torch.equal(done["direct value"], done["value"])


def check(kind, ranks, wanted, here, eps):
    """Gradients by logits, put together, and those by knobs, of every rank."""
    for i, whole in enumerate(wanted):
        got = [done[kind][i] for done in ranks]
        if i < 2:
            parts = [part["local"] if here.get("dtensor") else part for part in got]
            got = [torch.cat(parts, dim=-1)]
            assert got[0].dtype == here["student"].dtype
        for mine in got:
            close(mine, whole, eps)


def test_all_ranks_see_what_is_not_finite_in_one(results):
    wanted, _ = whole("NaN")
    assert wanted.isfinite().tolist() == [True, False, True, False, True]
    for done in of_ranks(results, "NaN"):
        torch.testing.assert_close(done["value"], wanted, equal_nan=True)


def test_a_gradient_by_a_dtensor_is_one(results):
    for name in ("DTensor", "DTensor of more axes", "labels of a DTensor"):
        axis = JOBS[name]["student"].ndim - 1
        for done in of_ranks(results, name):
            assert torch.is_tensor(done["value"])
            for grad in (*done["grads"][:2], *done["direct"][:2]):
                assert grad["placements"] == f"(Shard(dim={axis}),)"
                assert grad["shape"] == JOBS[name]["student"].shape


WATCHED = [n for n in COMPARED if JOBS[n]["thorough"] and not JOBS[n].get("compiled")]


@pytest.mark.parametrize("name", WATCHED)
def test_only_numbers_a_row_travel(results, name):
    here = JOBS[name]
    rows = min(here["student"][..., 0].numel(), here.get("rows_per_chunk", 256))
    for done in of_ranks(results, name):
        assert 0 < len(done["messages"]) < len(done["messages with gradient"])
        for _, size in done["messages"] + done["messages with gradient"]:
            assert size <= rows
        assert here.get("checkpointed") or done["messages of backward"] == []


def test_how_many_messages(results):
    """What the documentation says, of a value and of the gradients by both sides."""
    for done in of_ranks(results, "KL-qr-3.0-float64"):
        assert len(done["messages"]) <= 12
        assert len(done["messages with gradient"]) <= 36


def test_arguments_that_do_not_fit(results):
    first, second = of_ranks(results, "misplaced")
    assert "student.logits must have the placement Shard(dim=1)" in first["rows"]
    assert "teacher.logits must be a DTensor on the one-dimensional mesh" in first["elsewhere"]
    assert "mask must have the placement Replicate()" in first["mask"]
    assert "labels must have the placement Replicate()" in first["sharded labels"]
    assert "labels must be tokens in [0, 12) or ignore_index -100" in first["labels"]
    assert first["labels"] == second["labels"]
    assert "RuntimeError" in first["forward"]
    assert "forward mode" in first["forward"]
    assert "one-dimensional DeviceMesh" in first["square"]
    assert "one that this process belongs to" in second["outsider"]
    assert first["replicated mask"] == first["part of a mesh"] == 0.0
