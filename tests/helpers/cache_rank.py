"""One of the processes of test_cache_on_processes.py: runs the scripts that jobs.json lists.

Usage: cache_rank.py rank ranks folder. The folder has jobs.json: a list of a script's name, its
arguments, and the exit status that it must have.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from gloo import joined

from amidmath.integrations import cache_teacher, torch_distill

SCRIPTS = {"cache": cache_teacher.main, "distill": torch_distill.main}


def main(rank: int, ranks: int, folder: Path) -> None:
    with joined(rank, ranks, folder):
        for script, arguments, status in json.loads((folder / "jobs.json").read_text("utf-8")):
            assert SCRIPTS[script](arguments) == status, arguments


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
