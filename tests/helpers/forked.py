"""Processes that begin with the training libraries imported, which takes many seconds each time.

The first one starts multiprocessing's fork server, which imports them and computes nothing; each
process is a fork of that. A module that is to run there must be importable by its name.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerProcess

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["amidmath.integrations.torch_distill", "peft", "amidmath.integrations.jax_distill"]
)


def start(function: Callable[..., int | None], *args: Any, said: Path) -> ForkServerProcess:
    """A running process that calls a function of a module.

    Args:
        function: what is called; a number that it gives back is the exit code.
        args: what it is called with.
        said: the file for what it prints.
    """
    process = CONTEXT.Process(target=_call, args=(function, args, said), daemon=True)
    process.start()
    return process


def _call(function: Callable[..., int | None], args: tuple[Any, ...], said: Path) -> None:
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):  # not a pipe, which when full would stop it
        os.dup2(file, stream)
    gc.freeze()  # training collects garbage, among all that was imported if not for this
    sys.exit(function(*args))
