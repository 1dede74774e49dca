"""Work on rows, shared out to threads that do it without the GIL.

The thread that calls takes part, and others help where there are any: so a call gets done within a
call, in a child after a fork, and while the interpreter ends and starts no threads any more.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Parts that work is shared out in, for each thread: no thread waits long for another.
_PARTS = 4


def share(work: Callable[[int, int], None], count: int, threads: int, holding: Any = None) -> None:
    """Call ``work(first, last)`` for parts of ``range(count)``, until all of them are done.

    When it returns, or raises, nobody works any longer: after an error, and when it is interrupted,
    it waits for the parts that were begun.

    Args:
        work: does a part; an error in it ends the whole.
        count: how much there is to do.
        threads: how many threads may work at a time, this one among them.
        holding: what must live for as long as anybody works.
    """
    if threads <= 1 or count <= 1:
        work(0, count)
        return
    job = _Job(work, count, -(-count // (threads * _PARTS)), holding)
    try:
        _ask(job.help, min(threads, len(job.starts)) - 1)
        job.take()
    finally:
        job.end()
    if job.error is not None:
        raise job.error


class _Job:
    """Parts of some work, each done by whoever takes it."""

    def __init__(self, work: Callable[[int, int], None], count: int, step: int, holding: Any):
        self.work, self.count, self.step, self.holding = work, count, step, holding
        self.starts = deque(range(0, count, step))
        self.error: BaseException | None = None
        self._helping = 0
        self._left = threading.Condition()

    def take(self) -> None:
        """Do parts until none is left."""
        try:
            while True:
                try:
                    first = self.starts.popleft()
                except IndexError:
                    return
                self.work(first, min(first + self.step, self.count))
        except BaseException:
            self.starts.clear()
            raise

    def help(self) -> None:
        """The same in another thread; an error is kept for the one that called."""
        with self._left:
            self._helping += 1
        try:
            self.take()
        except BaseException as error:  # whatever it is, the one that called is told
            self.error = error
        finally:
            with self._left:
                self._helping -= 1
                self._left.notify()

    def end(self) -> None:
        """Let nobody begin another part, and wait for those that were begun."""
        interrupt: BaseException | None = None
        self.starts.clear()
        while True:
            try:
                with self._left:
                    self._left.wait_for(lambda: self._helping == 0)
                break
            except BaseException as error:  # a signal's; what is being written to must not be freed
                interrupt = error
        del self.work, self.holding  # a helper that comes too late would keep them
        if interrupt is not None:
            raise interrupt


_POOL: tuple[int, ThreadPoolExecutor] | None = None


def _ask(job: Callable[[], None], helpers: int) -> None:
    """Have as many threads as there can be do a job, some time."""
    global _POOL
    pool = _POOL
    if pool is None or pool[0] < helpers:
        # The threads of one that is too small end with it, when they have done what they are at.
        pool = _POOL = (helpers, ThreadPoolExecutor(helpers, thread_name_prefix="amidmath"))
    try:
        for _ in range(helpers):
            pool[1].submit(job)
    except RuntimeError:  # no more threads: at the interpreter's end, or at the system's limit
        return


def _forget() -> None:
    global _POOL
    _POOL = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)  # threads do not survive a fork
