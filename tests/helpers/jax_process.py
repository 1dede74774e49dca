"""One of the processes of test_jax_processes.py: tells the script one thing after the other."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from amidmath.integrations import jax_distill
from amidmath.integrations.jax_loop.training.rollouts import Rollouts
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

STEP, BATCH = JaxTrainer.make_step, Rollouts.batch

# Before which optimiser step this process is killed, or fails; None for never.
stop: tuple[int, str] | None = None


def main(jobs: Sequence[tuple[Sequence[str], tuple[int, str] | None]], variables: Any) -> int:
    """Do jobs: what the script is told, and where it stops before its end.

    Where sequences come from is printed, and how each job ended.

    Args:
        jobs: words and ``stop`` of each.
        variables: for the environment, which says where the other processes are.
    """
    global stop
    environment: Mapping[str, str] = variables
    os.environ |= environment
    jax.config.update("jax_disable_most_optimizations", True)
    JaxTrainer.make_step, Rollouts.batch = _step, _batch
    status = 1
    try:
        for words, before in jobs:
            stop = before
            status = jax_distill.main(list(words))
            print(f"exit status {status}", flush=True)
    except OSError:
        traceback.print_exc()
        status = 1
    jax.distributed.shutdown()  # as at the end of any program, but not of a fork
    return status


def _step(trainer: JaxTrainer) -> None:
    if stop == (trainer.step, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if stop == (trainer.step, "failed"):
        raise OSError("the wire is cut")
    STEP(trainer)


def _batch(rollouts: Rollouts, source: Any, batch: Any) -> dict[str, Any]:
    print(f"source {source.name}", flush=True)
    return BATCH(rollouts, source, batch)
