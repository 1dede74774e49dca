"""The process of test_rows_on_devices.py, which has eight devices: what they make of rows.

Usage: row_devices.py file. The file gets the results, pickled.
"""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import pickle
import sys
import traceback
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "helpers"))

import jax
import jax_kinds
from jax.sharding import PartitionSpec as P
from jax_kinds import KINDS, LARGE, SMALL
from jax_ways import SHARDED, mesh_of

import amidmath as am
from amidmath.backends.llvm_kernels import kernels as llvm_kernels

CALLS = []
KERNEL = llvm_kernels.run


def counted(*args, **kwargs):
    CALLS.append(1)
    return KERNEL(*args, **kwargs)


def cases():
    """By kind, way, rows and devices, whether kernels are called, and what is wrong."""
    every = [("dense", way, LARGE, 8) for way in SHARDED]
    every += [("dense", way, SMALL, 8) for way in ("around", "on a mesh, eager", "pmap")]
    every += [("dense", way, LARGE, 1) for way in ("within", "on a mesh")]
    every += [(kind, "around", LARGE, 8) for kind in KINDS if kind != "dense"]
    every += [("mean", "on a mesh, eager", SMALL, 8), ("knobs", "on a mesh, eager", SMALL, 8)]
    for kind, way, rows, devices in every:
        CALLS.clear()
        try:
            # On eight devices each has as many rows as are enough.
            rows_here = rows * devices if rows == LARGE else rows
            run = partial(SHARDED[way], devices=devices)
            jax_kinds.check(kind, rows_here, *jax_kinds.outcome(kind, run, rows_here))
            wrong = None
        except Exception:
            wrong = traceback.format_exc()
        yield (kind, way, rows, devices), (len(CALLS), wrong)


def refusals():
    """What is said of kernels that several devices cannot share, and of second derivatives."""
    x, _, _ = jax_kinds.single(KINDS["dense"].arrays(LARGE))
    mesh = mesh_of(8)
    spread = jax.device_put(x, jax.NamedSharding(mesh, P("rows")))
    by_vocabulary = jax.shard_map(
        lambda s, t: am.AMiD()(am.Shard(s, "rows"), am.Shard(t, "rows")),
        mesh=mesh,
        in_specs=P(None, "rows"),
        out_specs=P(),
    )
    for call in (
        lambda: jax.jit(partial(am.AMiD(), backend="compiled"))(spread, spread),
        lambda: jax.jit(jax.hessian(lambda s: by_vocabulary(s * x[:8], x[:8])))(1.0),
    ):
        try:
            call()
        except (RuntimeError, ValueError) as error:
            yield str(error)


if __name__ == "__main__":
    llvm_kernels.run = counted
    with Path(sys.argv[1]).open("wb") as file:
        pickle.dump({"cases": dict(cases()), "refusals": list(refusals())}, file)
