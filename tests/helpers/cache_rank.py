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

import torch.distributed as dist

from amidmath.integrations import cache_teacher, torch_distill

SCRIPTS = {"cache": cache_teacher.main, "distill": torch_distill.main}


def main(rank: int, ranks: int, folder: Path) -> None:
    # What a launcher says; a file in place of its server, so that no port is taken.
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
    }
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    for script, arguments, status in json.loads((folder / "jobs.json").read_text("utf-8")):
        assert SCRIPTS[script](arguments) == status, arguments
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
