"""A disk that is full while something is saved: one line that says where, and nothing lost."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from amidmath.integrations.common.errors import TrainingError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE_BYTES = 1 << 20


class DiskFullError(TrainingError):
    """There is no room for what has to be saved; the message says where and how much is free."""


def refused_room(error: BaseException) -> bool:
    """Whether the system says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, all of it or nothing.

    Raises:
        DiskFullError: there is no room.
    """
    before = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        if not refused_room(error):
            raise
        with suppress(OSError):
            os.truncate(path, before)
        raise DiskFullError(
            f"the disk is full: a line of {path} could not be written. What was saved before is "
            "untouched: make room and give the same command to go on"
        ) from error


@contextmanager
def saving(what: str, stage: Path) -> Iterator[None]:
    """Write something into a staging folder; if that fails, the folder is removed.

    Args:
        what: for the message.
        stage: the folder; it need not exist yet.

    Raises:
        DiskFullError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except BaseException as error:
        full = isinstance(error, Exception) and _is_full(error, stage)
        written = sum(path.stat().st_size for path in stage.rglob("*") if path.is_file())
        shutil.rmtree(stage, ignore_errors=True)
        if not full:
            raise
        free = shutil.disk_usage(_existing(stage)).free
        raise DiskFullError(
            f"the disk is full: {what} could not be written to {stage.parent}/, where {free:,} "
            f"bytes are free without the {written:,} written of it. What was saved before is "
            "untouched: make room and give the same command to go on"
        ) from error


def _is_full(error: Exception, stage: Path) -> bool:
    """Whether there is no room: the libraries do not all pass on the system's error number."""
    if isinstance(error, OSError) and error.errno is not None:
        return refused_room(error)
    if not _existing(stage).is_dir():
        return False
    probe = _existing(stage) / ".probe.partial"
    try:
        with probe.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as reason:
        return reason.errno in _FULL
    finally:
        probe.unlink(missing_ok=True)
    return False


def _existing(path: Path) -> Path:
    """The path, or else the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())
