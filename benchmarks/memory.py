"""The most memory that one loss and its gradient take: run as a program, in a process of its own.

    python -m benchmarks.memory '{"table": "dense", "key": "…", "shape": [512, 50257]}'

Prints a JSON object of bytes: the peak above what the process held with its inputs made and its
code loaded, and what the outputs are.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import inputs, peers, phases, subjects, training

ROOT = Path(__file__).parents[1]
WARM_ROWS = 8
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def find(table: str, key: str) -> subjects.Subject:
    """The subject with that key."""
    listed = {
        "dense": (*subjects.dense(), *peers.dense()),
        "linear": (*subjects.linear(), *peers.linear()),
        "training": training.subjects(),
    }[table]
    return next(subject for subject in listed if subject.key == key)


def in_a_process(table: str, key: str, shape: Sequence[int]) -> dict[str, int]:
    """The result of :func:`measure`, from a process that does nothing else."""
    asked = json.dumps({"table": table, "key": key, "shape": list(shape)})
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    measured: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(table: str, key: str, shape: list[int]) -> dict[str, int]:
    """Bytes above the inputs at the peak, and bytes of the outputs."""
    subject = find(table, key)

    def arrays(rows: int) -> tuple[Any, ...]:
        if table == "training":
            return (rows, *shape[1:])
        if table == "dense":
            return inputs.dense("language", rows, shape[1])
        return inputs.linear(rows, *shape[1:])

    # Some compile for a shape; for the others few rows load all that is to be loaded.
    compiles = subject.engine.startswith("JAX") or subject.name == peers.LIGER_COMPILED
    whole = compiles or table == "training"  # whose models are made for a shape
    warm_rows = shape[0] if whole else min(WARM_ROWS, shape[0])
    subject.build(arrays(warm_rows))["both"].once()
    timed = subject.build(arrays(shape[0]))["both"]
    if subject.engine.endswith("CUDA"):
        return _on_the_device(subject, timed.once)
    gc.collect()
    _trim()
    before = psutil.Process().memory_info().rss
    peak, result = _peak(timed.once)
    outputs = sum(int(grad.nbytes) for grad in phases.gradients(result))
    return {"above_inputs": peak - before, "outputs": outputs}


def _on_the_device(subject: subjects.Subject, call: Callable[[], Any]) -> dict[str, int]:
    if not subject.engine.startswith("torch"):
        import cupy

        pool = cupy.get_default_memory_pool()
        pool.free_all_blocks()
        before = pool.total_bytes()
        result = call()
        above = pool.total_bytes() - before
    else:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        above = torch.cuda.max_memory_allocated() - before
    outputs = sum(int(grad.nbytes) for grad in phases.gradients(result))
    return {"above_inputs": above, "outputs": outputs}


def _trim() -> None:
    """Give free memory back, so that the call cannot take it without being seen to."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """The most resident memory during a call: the kernel's own mark, or samples of it."""
    try:
        CLEAR.write_text("5")  # the mark starts again from what is resident now
    except OSError:
        return _sampled_peak(call)
    result = call()
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1]), result


def _sampled_peak(call: Callable[[], Any]) -> tuple[int, Any]:
    process, done, peak = psutil.Process(), threading.Event(), 0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return max(peak, process.memory_info().rss), result


if __name__ == "__main__":
    json.dump(measure(**json.loads(sys.argv[1])), sys.stdout)
