"""The memory that a call takes beyond what the process has: Linux's own peak, begun anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def can_be_measured() -> bool:
    """Whether there is such a peak, and it can be reset."""
    try:
        _RESET.write_text("5")
    except OSError:
        return False
    return "VmHWM" in _STATUS.read_text()


def taken_by(call: Callable[[], Any]) -> int:
    """Bytes of the peak during the call, result included, over those before it."""
    _RESET.write_text("5")
    before = _bytes("VmRSS")
    result = call()
    peak = _bytes("VmHWM")
    del result
    return peak - before


def _bytes(name: str) -> int:
    line = next(a for a in _STATUS.read_text().splitlines() if a.startswith(name))
    return int(line.split()[1]) * 1024
