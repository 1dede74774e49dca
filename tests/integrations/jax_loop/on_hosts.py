"""One of the processes of test_hosts.py: gives the script one command line after the other.

Usage: on_hosts.py jobs.json. Each job says for every process what the script is told, and before
which optimiser step it is killed or fails, if at all. Where sequences come from is printed, and
how each job ended.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

from amidmath.integrations import jax_distill
from amidmath.integrations.jax_loop.rollouts import Rollouts
from amidmath.integrations.jax_loop.trainer import JaxTrainer

STEP, BATCH = JaxTrainer._step, Rollouts.batch


def step(trainer):
    """A training step, unless it is the one to stop before."""
    before, how = job["stop"] or (None, None)
    if trainer.step == before and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if trainer.step == before and how == "failed":
        raise OSError("the wire is cut")
    STEP(trainer)


def batch(rollouts, source, given):
    """Says where a step's sequences come from."""
    print(f"source {source.name}", flush=True)
    return BATCH(rollouts, source, given)


JaxTrainer._step, Rollouts.batch = step, batch

if __name__ == "__main__":
    process = int(os.environ.get("JAX_PROCESS_ID", "0"))
    for of_processes in json.loads(Path(sys.argv[1]).read_text()):
        job = of_processes[process]
        status = jax_distill.main(job["words"])
        print(f"exit status {status}", flush=True)
    sys.exit(status)
