"""Computes while the interpreter ends: in a daemon, another thread, or what ``atexit`` calls.

python at_the_end.py daemon|thread|atexit
"""

from __future__ import annotations

import atexit
import sys
import threading
import time

import numpy as np

import amidmath as am

STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, 256, 1024)).astype(np.float32)


def compute() -> None:
    am.AMiD().value_and_grad(STUDENT, TEACHER, backend="compiled")


def compute_for(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        compute()
    print("computed", flush=True)


def main() -> None:
    who = sys.argv[1]
    compute()
    if who == "atexit":
        atexit.register(compute_for, 0.3)
    else:
        threading.Thread(target=compute_for, args=(0.5,), daemon=who == "daemon").start()
        time.sleep(0.1)
    print("main is done", flush=True)


if __name__ == "__main__":
    main()
