"""Cache a teacher's most probable tokens for a dataset, in JAX; cache_teacher.py without torch.

    python integrations/jax_cache_teacher.py --teacher_model_name_or_path TEACHER \
        --model_name_or_path STUDENT --dataset_name data.jsonl --output_dir CACHE --k 256

Takes the data arguments of jax_distill.py, and ``--mesh`` for the devices that the teacher lies
on; one process makes a cache. It is the one that cache_teacher.py makes: either script goes on with
it, and both loops train from it. ``--help`` lists all arguments.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rich.console import Console

from amidmath.integrations.common.cli.command_line import check_alone, exit_status
from amidmath.integrations.common.cli.quiet import quiet
from amidmath.integrations.common.teacher_cache.caching import OneProcess, make_cache
from amidmath.integrations.jax_loop.devices.processes import processes
from amidmath.integrations.jax_loop.run.cache_source import load
from amidmath.integrations.jax_loop.settings.cache_arguments import CacheRequest, parse_arguments


def cache(request: CacheRequest, console: Console) -> Path:
    """Make a cache, or go on with one; see ``caching.make_cache``."""
    return make_cache(request, console, lambda: load(request, console), OneProcess())


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the cache is complete, 1 when the disk is full, 2 when something given does not fit,
        130 when interrupted.
    """

    def work() -> None:
        request = parse_arguments(argv)
        check_alone(processes(), "caching in JAX")
        cache(request, Console())

    with quiet(argv):
        return exit_status(work, "finished shards are kept, the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
