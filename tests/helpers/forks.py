"""Forks while another thread does something, and has the child compute.

    python forks.py compiling|computing|freeing|DataLoader

A child that hangs is killed, and the exit status is 1.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

import amidmath as am
from amidmath.backends.llvm_kernels import jit
from amidmath.backends.llvm_kernels import kernels as llvm_kernels
from amidmath.backends.recent import Recent

if TYPE_CHECKING:
    from collections.abc import Callable

KNOWN, NEW = am.AMiD(), am.AMiD(am.JensenShannon(0.5), order="qr")
ALPHAS = (-1.0, 0.0, 1.0, 3.0)
# Losses that are compiled apart.
LOSSES = itertools.cycle([am.AMiD(order=o, alpha=a) for o in ("pr", "qr") for a in ALPHAS])
RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 64, 1024)).astype(np.float32)


def compute(loss: am.Loss = KNOWN) -> float:
    value, grad = loss.value_and_grad(STUDENT, TEACHER, backend="compiled")
    assert np.isfinite(grad).all()
    return float(value)


def compile_on() -> None:
    """Compile one loss after the other, and take one's time."""
    original = jit.optimized

    def slowly(text: str) -> Any:
        MOMENT.set()
        time.sleep(0.1)
        return original(text)

    jit.optimized = slowly  # type: ignore[assignment]
    llvm_kernels._KERNELS = Recent(most=1)
    while True:
        compute(next(LOSSES))


def compute_on() -> None:
    while True:
        MOMENT.set()
        compute()


def free_on() -> None:
    """Make and free machine code."""
    while True:
        MOMENT.set()
        jit.native("define void @f() { ret void }", "f")


MOMENT = threading.Event()
BUSY: dict[str, Callable[[], None]] = {
    "compiling": compile_on,
    "computing": compute_on,
    "freeing": free_on,
}


def forked(wanted: float) -> bool:
    """Whether a child computes what it should, a known loss and one that it has to compile."""
    child = os.fork()
    if child == 0:
        right = compute() == wanted and compute(NEW) > 0.0
        os._exit(0 if right else 3)
    for _ in range(1000):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGABRT)  # tells where it hangs
    os.waitpid(child, 0)
    return False


def loaded(wanted: float) -> bool:
    """Whether the workers of torch's data loader, which are forks, compute what they should."""
    from torch.utils.data import DataLoader, Dataset

    class Computed(Dataset[float]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, place: int) -> float:
            os.environ["OMP_NUM_THREADS"] = str(place + 1)
            return compute()

    loader = DataLoader(Computed(), batch_size=1, num_workers=2, multiprocessing_context="fork")
    return [float(value) for value in loader] == [wanted] * 4


def main() -> int:
    warnings.simplefilter("ignore")  # of forks from a process with threads, which it is about
    when = sys.argv[1]
    wanted = compute()
    if when == "DataLoader":
        right = loaded(wanted)
    else:
        threading.Thread(target=BUSY[when], daemon=True).start()
        assert MOMENT.wait(30)
        right = forked(wanted)
    print("done" if right else "wrong", flush=True)
    return 0 if right else 1


if __name__ == "__main__":
    os._exit(main())
