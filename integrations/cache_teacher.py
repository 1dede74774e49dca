"""Cache a teacher's most probable tokens for a dataset, to distil from without the teacher.

    python integrations/cache_teacher.py --teacher_model_name_or_path TEACHER \
        --model_name_or_path STUDENT --dataset_name data.jsonl --output_dir CACHE --k 256

Takes the data arguments of torch_distill.py, and prepares the same rows with them. Says beforehand
how large the cache will be, how long it takes, and how much of the teacher's mass other k would
cover; ``--dry_run`` stops there. The same command goes on where an earlier one was stopped, with
``--held_out`` it adds the held-out rows, and under ``accelerate launch`` each process writes its
share. ``--help`` lists all arguments.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from rich.console import Console

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.quiet import quiet
from amidmath.integrations.common.teacher_cache.caching import make_cache
from amidmath.integrations.torch_loop.devices.processes import Launched, main_console
from amidmath.integrations.torch_loop.run.cache_source import load
from amidmath.integrations.torch_loop.settings.cache_arguments import Arguments, parse_arguments


def cache(arguments: Arguments, console: Console) -> Path:
    """Make a cache, or go on with one; see ``caching.make_cache``."""
    return make_cache(arguments, console, lambda: load(arguments, console), Launched())


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the cache is complete, 1 when the disk is full, 2 when something given does not fit,
        130 when interrupted.
    """
    with quiet(argv):
        return exit_status(
            lambda: cache(parse_arguments(argv), main_console()),
            "finished shards are kept, the same command goes on",
        )


if __name__ == "__main__":
    sys.exit(main())
