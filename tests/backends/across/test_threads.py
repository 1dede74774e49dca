"""Rows shared out to threads: errors, interrupts, forks, and the end of the interpreter."""

from __future__ import annotations

import _thread
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import amidmath as am

pytest.importorskip("llvmlite")
from amidmath.backends.llvm_kernels import kernels as llvm_kernels
from amidmath.backends.llvm_kernels import threads
from amidmath.backends.llvm_kernels.threads import share
from amidmath.backends.recent import Recent

HELPERS = Path(__file__).parents[2] / "helpers"


class Work:
    """Notes which parts are done, by whom, and whether anybody is at work."""

    def __init__(self, seconds=0.0):
        self.seconds, self.done, self.workers, self.at_work = seconds, [], set(), 0

    def __call__(self, first, last):
        self.at_work += 1
        try:
            time.sleep(self.seconds)
            self.part(first, last)
        finally:
            self.done += range(first, last)
            self.workers.add(threading.get_ident())
            self.at_work -= 1

    def part(self, first, last):
        pass


def here():
    return threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("count", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("many", [1, 2, 3, 8])
def test_every_part_is_done_once(count, many):
    work = Work()
    share(work, count, many)
    assert sorted(work.done) == list(range(count))


def test_others_help():
    work = Work(0.02)
    share(work, 12, 3)
    assert 2 <= len(work.workers) <= 3


@pytest.mark.parametrize("where", ["here", "elsewhere"])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ZeroDivisionError])
def test_an_error_ends_it_when_nobody_works_any_longer(error, where):
    class Failing(Work):
        def part(self, first, last):
            time.sleep(0.02 if here() == (where == "here") else 0.1)
            if here() == (where == "here"):
                raise error("of a part")

    work = Failing()
    with pytest.raises(error, match="of a part"):
        share(work, 400, 4)
    assert work.at_work == 0
    done = len(work.done)
    assert done < 400
    time.sleep(0.15)
    assert len(work.done) == done


def test_an_interrupt_waits_for_those_who_work():
    """Twice, the second time while it waits."""

    class Interrupted(Work):
        def part(self, first, last):
            if here():
                time.sleep(0.05)  # the others have begun
                _thread.interrupt_main()
            else:
                time.sleep(0.15)
                _thread.interrupt_main()
                time.sleep(0.15)

    work = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        share(work, 8, 2)
    assert work.at_work == 0
    assert len(work.done) < 8


@pytest.mark.parametrize("refusal", ["can't start new thread", "cannot schedule new futures"])
def test_who_calls_does_it_alone_where_there_are_no_threads(monkeypatch, refusal):
    def refused(*args):
        raise RuntimeError(refusal)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refused)
    work = Work()
    share(work, 100, 4)
    assert sorted(work.done) == list(range(100))
    assert work.workers == {threading.get_ident()}


def test_work_within_work():
    """All threads are taken by those who wait for more of them."""

    class Outer(Work):
        def part(self, first, last):
            inner = Work(0.01)
            share(inner, 9, 3)
            assert sorted(inner.done) == list(range(9))

    work = Outer()
    share(work, 16, 4)
    assert sorted(work.done) == list(range(16))


def test_threads_are_as_many_as_are_asked_for_at_most(monkeypatch):
    """However often the number changes."""
    monkeypatch.setattr(threads, "_POOL", None)
    before = set(threading.enumerate())
    for many in (*range(2, 9), *range(8, 1, -1)):
        share(Work(), 64, many)
    gc.collect()
    for _ in range(100):
        alive = set(threading.enumerate()) - before
        if len(alive) <= 7:
            return
        time.sleep(0.02)
    pytest.fail(f"{len(alive)} threads are left")


def test_nothing_is_held_when_it_is_done(monkeypatch):
    """Also by a thread that was asked and comes too late."""
    pool = ThreadPoolExecutor(1)
    busy = threading.Event()
    pool.submit(busy.wait)
    monkeypatch.setattr(threads, "_POOL", (1, pool))
    held = np.zeros(3)
    gone = weakref.ref(held)
    share(Work(), 4, 2, holding=held)
    del held
    assert gone() is None
    busy.set()
    pool.shutdown()


def test_how_many_threads_numpy_gets(monkeypatch):
    """As the environment says at the moment, in OpenMP's words."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = llvm_kernels.threads_at_hand()
    for said, wanted in (("3", 3), ("5,2", 5), (" 4 ", 4), ("", cores), ("0", cores), ("²", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert llvm_kernels.threads_at_hand() == wanted


def test_an_interrupt_in_a_call_of_xla_is_told(monkeypatch):
    """Results that nobody computed are no results."""
    jnp = pytest.importorskip("jax.numpy")

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt("while rows are computed")

    monkeypatch.setattr(llvm_kernels, "run", interrupted)
    rows = jnp.zeros((2, 64))
    with pytest.raises(Exception, match="while rows are computed"):
        am.AMiD()(rows, rows, backend="compiled").block_until_ready()


# ---------------------------------------------------------------------------------------------
# What is made once


def test_threads_that_ask_at_once_have_it_made_once():
    made, kept = itertools.count(), Recent(most=2)
    barrier = threading.Barrier(4)

    def make():
        time.sleep(0.05)
        return f"made {next(made)}"

    def ask(_):
        barrier.wait()
        return kept.get("key", make)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(ask, range(4))) == {"made 0"}


def test_who_finds_it_does_not_wait_for_who_makes():
    kept = Recent(most=2)
    kept.get("there", lambda: "found")
    making, found = threading.Event(), threading.Event()

    def make():
        making.set()
        assert found.wait(10)
        return "made"

    maker = threading.Thread(target=kept.get, args=("new", make))
    maker.start()
    assert making.wait(10)
    assert kept.get("there", lambda: "made again") == "found"
    found.set()
    maker.join()


def test_the_least_recently_used_goes_first():
    kept = Recent(most=2)
    for key in "abacab":
        kept.get(key, lambda key=key: key.upper())
    assert len(kept) == 2
    assert kept.get("a", lambda: "again") == "A"
    assert kept.get("c", lambda: "again") == "again"


# ---------------------------------------------------------------------------------------------
# Processes


def ran(*args, **environment):
    """What a process says, which has a minute."""
    command = [sys.executable, "-X", "faulthandler", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout, done.stderr, done.returncode


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs fork")
@pytest.mark.parametrize("when", ["compiling", "computing", "freeing", "DataLoader"])
def test_a_child_computes_whenever_it_is_forked(when):
    said, errors, status = ran(str(HELPERS / "forks.py"), when)
    assert (said, status) == ("done\n", 0), errors


@pytest.mark.parametrize("who", ["daemon", "thread", "atexit"])
def test_the_interpreter_ends_while_somebody_computes(who):
    said, errors, status = ran(str(HELPERS / "at_the_end.py"), who)
    assert (said, errors, status) == ("main is done\n" + "computed\n" * (who != "daemon"), "", 0)
