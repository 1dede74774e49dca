"""Compiled things that are kept: so many, the least recently used goes first."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

Kept = TypeVar("Kept")

COMPILING = threading.RLock()
"""Held by the thread that compiles, and by one that forks: the child finds no work half done."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=COMPILING.acquire,
        after_in_parent=COMPILING.release,
        after_in_child=COMPILING.release,
    )


class Recent(Generic[Kept]):
    """Things that take long to make, each made once, the most recently used of them kept.

    Any thread may ask. One that finds what it asks for waits for nobody; one that does not, for
    whoever makes something. What is let go lives on for as long as somebody uses it.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        """Start with nothing."""
        self.most = most
        self._kept: OrderedDict[Hashable, Kept] = OrderedDict()

    def __len__(self) -> int:
        """Count them."""
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """The thing that is kept for the key, or else made; not None."""
        found = self._kept.get(key)
        if found is not None:
            with suppress(KeyError):  # another thread may have let it go meanwhile
                self._kept.move_to_end(key)
            return found
        with COMPILING:
            found = self._kept.get(key)
            if found is None:
                found = self._kept[key] = make()
                while len(self._kept) > self.most:
                    self._kept.popitem(last=False)
        return found
