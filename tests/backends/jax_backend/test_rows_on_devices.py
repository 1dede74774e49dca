"""Rows on several devices, each way and kind, and which of them the CPU's kernel computes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from jax_kinds import LARGE

from amidmath.arrays.dispatch import FIRST_ONLY


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What eight devices made of them."""
    file = tmp_path_factory.mktemp("devices") / "done.pkl"
    command = [sys.executable, Path(__file__).with_name("row_devices.py"), file]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    with file.open("rb") as done:
        return pickle.load(done)


def test_sums_and_gradients(results):
    wrong = {case: said for case, (_, said) in results["cases"].items() if said is not None}
    assert not wrong, "\n".join(f"{case}: {said}" for case, said in wrong.items())
    assert len(results["cases"]) > 20


def test_each_device_of_a_shard_map_calls_the_kernel(results):
    """And a program for one device does, among several; arrays that are shared do not."""
    for (kind, way, rows, devices), (calls, _) in results["cases"].items():
        if kind != "dense":
            continue
        alone = devices == 1 or "on a" not in way
        assert calls == (devices if alone and rows == LARGE else 0), (way, rows, devices)


def test_refusals(results):
    several, second = results["refusals"]
    assert several == (
        "backend 'compiled' runs in JAX on a CPU that is by itself: the program is for 8 devices "
        "that share the arrays"
    )
    assert second == FIRST_ONLY
