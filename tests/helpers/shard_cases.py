"""What two ranks of torch make of their shards of the vocabulary: losses, logits, masks, labels."""

from __future__ import annotations

import torch

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
