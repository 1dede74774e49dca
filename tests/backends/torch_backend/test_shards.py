"""torch: logits sharded over two processes give the loss and the gradients of the whole ones."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shard_cases import JOBS, RANKS
from torch.nn.functional import cross_entropy

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
        said = [process.communicate(timeout=300)[0] for process in processes]
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
    assert "NotImplementedError: no forward mode for a loss of an am.Shard" in first["forward"]
    assert "ranks must be a one-dimensional DeviceMesh" in first["square"]
    assert "ranks must be a group that this process belongs to" in second["outsider"]
    assert first["replicated mask"] == first["part of a mesh"] == 0.0
