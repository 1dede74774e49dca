"""The process of test_shards.py, which has eight devices: does its jobs, and says what came out.

Usage: shard_devices.py folder. The folder has jobs.pkl, and gets done.pkl.
"""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import dataclasses
import math
import pickle
import re
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import amidmath as am

MESH = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)
SHAPE = re.compile(r"[a-z]+\d+\[([\d,]*)\]")


def with_knobs(job, knobs):
    """The loss with its arrays, which are arguments here."""
    return dataclasses.replace(job["loss"], **dict(zip(job["knobs"], knobs, strict=True)))


def on_shards(job):
    """f(student, teacher, *knobs): the loss from what one device has of them."""

    def f(student, teacher, *knobs):
        mask = None if job["mask"] is None else jnp.asarray(job["mask"])
        labels = {}
        if job["labels"] is not None:
            labels = {"labels": jnp.asarray(job["labels"]), "label_weight": job["label_weight"]}
        loss = with_knobs(job, knobs) if knobs else job["loss"]
        student, teacher = (
            am.Shard(logits, "vocab", job["rows_per_chunk"]) for logits in (student, teacher)
        )
        if job["way"].startswith("method"):
            wrt = ("student", "teacher", *job["knobs"])
            value, grads = loss.value_and_grad(student, teacher, mask, wrt=wrt, **labels)
            assert {(g.ranks, g.rows_per_chunk) for g in grads[:2]} == {
                ("vocab", job["rows_per_chunk"])
            }
            return value, (*(grad.logits for grad in grads[:2]), *grads[2:])
        if job["rows_sharded"]:
            total = loss(student, teacher, reduction="sum")
            return jax.lax.psum(total, "data") / job["student"].shape[0]
        return loss(student, teacher, mask, **labels)

    return f


def program(job):
    """Value and gradients of whole arrays that are sharded over the mesh."""
    rows = "data" if job["rows_sharded"] else None
    logits, knobs = P(rows, "vocab"), [P(rows) if a.ndim else P() for a in job["knobs"].values()]
    specs, f = (logits, logits, *knobs), on_shards(job)
    every = tuple(range(len(specs)))
    checked = "unchecked" not in job["way"]

    def over_mesh(f, out_specs):
        return jax.shard_map(f, mesh=MESH, in_specs=specs, out_specs=out_specs, check_vma=checked)

    match job["way"].removesuffix(", unchecked"):
        case "within":
            return over_mesh(jax.value_and_grad(f, every), (P(), specs))
        case "around":
            return jax.value_and_grad(over_mesh(f, P()), every)
        case "method":
            return over_mesh(f, (P(), specs))
        case "forward":
            f = over_mesh(f, P())
            return lambda *operands: (f(*operands), jax.jacfwd(f, every)(*operands))
        case "mapped":
            row_by_row = over_mesh(jax.vmap(jax.checkpoint(f)), P())
            return jax.value_and_grad(lambda *a: jnp.mean(row_by_row(*a)), every)
        case "plain":
            return jax.value_and_grad(job["loss"], every)


def do(job):
    operands = [jnp.asarray(a) for a in (job["student"], job["teacher"], *job["knobs"].values())]
    if job["way"] == "explicit":
        return explicit(job, operands)
    if job["way"] == "plain":
        operands = [jax.device_put(a, NamedSharding(MESH, P(None, "vocab"))) for a in operands]
    compiled = jax.jit(program(job)).lower(*operands).compile()
    value, grads = jax.tree.map(np.asarray, compiled(*operands))
    return {"value": value, "grads": grads, "messages": messages(compiled.as_text())}


def explicit(job, operands):
    """On a mesh whose axes are part of the types."""
    mesh = jax.make_mesh((8,), ("vocab",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        operands = [jax.device_put(a, NamedSharding(mesh, P(None, "vocab"))) for a in operands]
        f = jax.value_and_grad(jax.shard_map(on_shards(job), out_specs=P()), (0, 1))
        value, grads = jax.tree.map(np.asarray, jax.jit(f)(*operands))
    return {"value": value, "grads": grads}


def messages(text):
    """Which collectives are in a compiled program, with the number of numbers of every array."""
    return [
        (kind, math.prod(int(n) for n in shape.split(",") if n))
        for result, kind in COLLECTIVE.findall(text)
        for shape in SHAPE.findall(result)
    ]


def unbound():
    """What is said of an axis that no shard_map goes over."""
    x, logits = jnp.zeros((2, 4)), P(None, "vocab")

    def elsewhere(student, teacher):
        return am.AMiD()(am.Shard(student, "model"), am.Shard(teacher, "model"))

    inside = jax.shard_map(elsewhere, mesh=MESH, in_specs=(logits, logits), out_specs=P())
    errors = []
    for call in (elsewhere, inside):
        try:
            call(x, x)
        except ValueError as error:
            errors.append(str(error))
    return errors


def main(folder):
    with (folder / "jobs.pkl").open("rb") as file:
        jobs = pickle.load(file)
    done = {"unbound": unbound()}
    for name, job in jobs.items():
        try:
            with jax.enable_x64(job["student"].dtype == np.float64):
                done[name] = do(job)
        except Exception:
            done[name] = {"error": traceback.format_exc()}
    with (folder / "done.pkl").open("wb") as file:
        pickle.dump(done, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
