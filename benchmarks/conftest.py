"""Options, the measuring fixture, and what the JSON says about the machine."""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # libraries side by side: no spinning threads

import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from benchmarks import inputs, trials

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.phases import Timed

ABSENT = pytest.StashKey[dict[str, str]]()
PACKAGES = ("numpy", "torch", "llvmlite", "jax", "cupy", "triton", "trl", "liger-kernel", "optax")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("amidmath's benchmarks")
    group.addoption("--sizes", default="full", choices=list(inputs.SIZES), help="shapes of the run")
    group.addoption("--sweeps", default=3, type=int, help="how often all subjects take their turn")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ABSENT] = {}


@pytest.fixture(scope="session", autouse=True)
def all_cores() -> None:
    """Let torch use every core; NumPy's, JAX's and Numba's threads do so by default."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(cores())


@pytest.fixture
def sizes(request: pytest.FixtureRequest) -> inputs.Sizes:
    return inputs.SIZES[request.config.getoption("sizes")]


@pytest.fixture(scope="session")
def seconds() -> dict[Any, float]:
    """How long a call of each phase took when it was last tried, to choose the rounds by."""
    return {}


@pytest.fixture
def present(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Skip what cannot run, and have the report say why."""

    def check(who: str, reason: str) -> None:
        if reason:
            request.config.stash[ABSENT][who] = reason
            pytest.skip(f"{who}: {reason}")

    return check


@pytest.fixture
def measure(
    benchmark: BenchmarkFixture,
    seconds: dict[Any, float],
    present: Callable[[str, str], None],
) -> Callable[[trials.Trial], None]:
    """Time a trial: warm up, then as many rounds as fit the budget of a sweep."""

    def run(trial: trials.Trial) -> None:
        subject = trial.subject
        present(f"{subject.name} ({subject.engine})", subject.absent)
        timed = subject.build(trial.arrays())[trial.phase]
        if seconds.get(trial.key, 0.0) < trials.SLOW:
            seconds[trial.key] = _seconds(timed)
        rounds = round(trials.BUDGET / seconds[trial.key])
        benchmark.group = trial.group
        benchmark.extra_info.update(
            kind="time",
            group=trial.group,
            name=subject.name,
            engine=subject.engine,
            computes=subject.computes,
            main=subject.main,
            phase=trial.phase,
            sweep=trial.sweep,
            **dict(trial.info),
        )
        benchmark.pedantic(
            timed.target, setup=timed.setup, rounds=min(max(rounds, 1), trials.MOST_ROUNDS)
        )
        if benchmark.stats is not None:  # the first call may have compiled
            seconds[trial.key] = benchmark.stats.stats.median

    return run


def _seconds(timed: Timed) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    timed.once()
    return time.perf_counter() - start


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Note the machine for the report, and nothing that names it."""
    cpu = machine_info["cpu"].get("brand_raw") or machine_info["processor"] or "unknown processor"
    memory = round(psutil.virtual_memory().total / 2**30)
    system, python = machine_info["system"], machine_info["python_version"]
    words = f"{cpu}, {cores()} cores, {memory} GiB of memory, {system}, Python {python}"
    if gpu := _gpu():
        words += f", {gpu}"
    machine_info.clear()
    machine_info.update(words=words, versions=_versions())


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    """Drop what names branches and folders."""
    commit_info.pop("project", None)
    commit_info.pop("branch", None)


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: list[Any], output_json: dict[str, Any]
) -> None:
    """Note what was not measured, and how much was asked for."""
    for benchmark in output_json["benchmarks"]:
        benchmark.pop("params", None)  # objects; extra_info has their words
    output_json["absent"] = config.stash[ABSENT]
    output_json["sizes"] = config.getoption("sizes")
    output_json["sweeps"] = config.getoption("sweeps")


def _gpu() -> str:
    try:
        import torch
    except ImportError:
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _versions() -> dict[str, str]:
    versions = {}
    for package in ("amidmath", *PACKAGES):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
