"""Processes that talk by gloo, without a launcher."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist


@contextlib.contextmanager
def joined(rank: int, ranks: int, folder: Path) -> Iterator[None]:
    """This process is one of some, as a launcher would say; a file is in place of its server.

    So that no port is taken.
    """
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
    }
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    yield
    dist.destroy_process_group()
