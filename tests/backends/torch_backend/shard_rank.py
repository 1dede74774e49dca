"""One of the processes of test_shards.py: does its jobs on its shard, and says what came out.

Usage: shard_rank.py rank ranks folder. The folder has jobs.pkl, and gets rank.pkl.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.utils._python_dispatch import TorchDispatchMode

import amidmath as am

OPTIONS = ("mask", "reduction", "denominator", "labels", "label_weight", "ignore_index")


class Messages(TorchDispatchMode):
    """Which collectives are called, and the sizes of what they are given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in ("c10d", "_c10d_functional"):
            tensors = [a for a in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(a)]
            largest = max(tensors, key=lambda tensor: tensor.numel())
            self.seen.append((function.__name__.split(".")[0], largest.numel()))
        return function(*args, **(kwargs or {}))


def parts(job):
    edges = [0]
    for size in job["sizes"]:
        edges.append(edges[-1] + size)
    return edges


def shards(job, rank):
    """This rank's logits, as leaves, plain or DTensors."""
    edges = parts(job)
    leaves = []
    for name in ("student", "teacher"):
        local = job[name][..., edges[rank] : edges[rank + 1]].clone()
        if job.get("dtensor"):
            mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
            whole = job[name]
            local = DTensor.from_local(
                local,
                mesh,
                [Shard(whole.ndim - 1)],
                shape=whole.shape,
                stride=whole.stride(),
            )
        leaves.append(local.detach().requires_grad_())
    return leaves


def do(job, rank):
    group = dist.group.WORLD
    if job.get("mesh"):
        group = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    rows_per_chunk = job.get("rows_per_chunk", 256)
    knobs = {name: knob.requires_grad_() for name, knob in job["loss"].knobs.items()}

    def loss(student, teacher, **options):
        sides = (am.Shard(logits, group, rows_per_chunk) for logits in (student, teacher))
        return job["loss"](*sides, **options)

    student, teacher = shards(job, rank)
    options = {name: job[name] for name in OPTIONS if name in job}
    result = {}
    # Compiled code cannot be watched; and watching takes its time.
    messages = (
        Messages() if job["thorough"] and not job.get("compiled") else contextlib.nullcontext()
    )
    if job["thorough"]:
        result["messages"] = messages.seen = []
        with messages, torch.no_grad():
            result["without"] = loss(student, teacher, **options)
    forward = loss
    if job.get("compiled"):
        forward = torch.compile(loss, backend="eager", fullgraph=True)
    if job.get("checkpointed"):

        def forward(*args, **kwargs):
            return torch.utils.checkpoint.checkpoint(loss, *args, use_reentrant=False, **kwargs)

    with messages:
        result["messages with gradient"] = messages.seen = []
        value = forward(student, teacher, **options)
        result["messages of backward"] = messages.seen = []
        cotangent = job.get("cotangent", torch.ones_like(value))
        grads = torch.autograd.grad(value, [student, teacher, *knobs.values()], cotangent)
    result |= {"value": value, "grads": grads}
    if job["thorough"]:
        names = ("student", "teacher", *knobs)
        sides = [am.Shard(logits, group, rows_per_chunk) for logits in (student, teacher)]
        direct, grads = job["loss"].value_and_grad(*sides, **options, wrt=names)
        for grad in grads[:2]:
            assert isinstance(grad, am.Shard)
            assert (grad.ranks, grad.rows_per_chunk) == (group, rows_per_chunk)
        by_logits = [grad.logits for grad in grads[:2]]
        result |= {"direct value": direct, "direct": [*by_logits, *grads[2:]]}
    return result


def plain(x):
    """For the pickle: no graphs, and of DTensors the local part."""
    if isinstance(x, DTensor):
        return {"placements": str(x.placements), "shape": x.shape, "local": x.detach().to_local()}
    if torch.is_tensor(x):
        return x.detach().clone()
    if isinstance(x, dict):
        return {key: plain(y) for key, y in x.items()}
    return type(x)(plain(y) for y in x) if isinstance(x, (list, tuple)) else x


def misplaced(job, rank):
    """What is said of DTensors, masks, labels and meshes that do not fit."""
    mesh = dist.init_device_mesh("cpu", (2,))
    square = dist.init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    alone = dist.new_group([0])
    x = torch.zeros(4, 6)
    columns = DTensor.from_local(x, mesh, [Shard(1)])
    spread = DTensor.from_local(torch.zeros(2, dtype=torch.int64), mesh, [Shard(0)])
    rows = DTensor.from_local(x, mesh, [Shard(0)])
    elsewhere = DTensor.from_local(x, square, [Replicate(), Shard(1)])
    errors = {}

    def loss(student, teacher, *args, ranks=mesh, **options):
        return am.AMiD()(am.Shard(student, ranks), am.Shard(teacher, ranks), *args, **options)

    def forward():
        return torch.func.jvp(lambda s: loss(s, 0 * x), (x,), (x + 1,))

    for name, call in {
        "rows": lambda: loss(rows, columns),
        "elsewhere": lambda: loss(columns, elsewhere),
        "mask": lambda: loss(columns, columns, DTensor.from_local(x[:, 0] == 0, mesh, [Shard(0)])),
        "square": lambda: loss(x, x, ranks=square),
        "outsider": lambda: loss(x, x, ranks=alone) if rank else None,
        "labels": lambda: loss(x, x, labels=torch.tensor([0, 11, 12, -100])),
        "sharded labels": lambda: loss(columns, columns, labels=spread),
        "forward": forward,
    }.items():
        try:
            call()
        except (TypeError, ValueError, RuntimeError) as error:
            errors[name] = f"{type(error).__name__}: {error}"
    whole = torch.ones(4, dtype=torch.bool)
    mask = DTensor.from_local(whole, mesh, [Replicate()])
    errors["replicated mask"] = loss(columns, columns, mask)
    errors["part of a mesh"] = loss(x, x, ranks=square["tensor"])
    return errors


def main(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/init", rank=rank, world_size=ranks
    )
    with (folder / "jobs.pkl").open("rb") as file:
        jobs = pickle.load(file)
    done = {}
    for name, job in jobs.items():
        try:
            done[name] = plain((misplaced if job == "misplaced" else do)(job, rank))
        except Exception:
            done[name] = {"error": traceback.format_exc()}
            break  # the others' collectives would no longer pair up with these
    with (folder / f"{rank}.pkl").open("wb") as file:
        pickle.dump(done, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
