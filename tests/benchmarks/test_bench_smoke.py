"""The benchmarks at tiny shapes: every subject that is here runs, and the report has all parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")

ROOT = Path(__file__).parents[2]
# A process each: a few of those stand for all.
IN_PROCESSES = (
    "not (test_memory.py or test_startup.py or test_peak)"
    " or (test_memory.py and (kl_div or matmuls or (amidmath_linear and not AB)))"
    " or (test_startup.py and import_amidmath)"
    " or (test_peak and (transformers or gkd))"
)
# torch.compile, which one peer uses, does nothing then.
UNCOMPILED = {"TORCHDYNAMO_DISABLE": "1"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a run."""
    path = tmp_path_factory.mktemp("bench") / "results.json"
    options = ["--sizes", "smoke", "--sweeps", "1", "-p", "no:xdist", "-p", "no:cacheprovider"]
    chosen = ["-k", IN_PROCESSES, f"--benchmark-json={path}"]
    done = _python("-m", "pytest", "benchmarks", *options, *chosen)
    assert done.returncode == 0, done.stdout[-5000:]
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    done = _python("-m", "benchmarks.report", str(run), "--docs", str(run.parent / "docs"))
    assert done.returncode == 0, done.stderr
    assert "not a complete run" in done.stdout
    assert not (run.parent / "docs").exists()  # what is published is measured at full size
    return (run.parent / "benchmarks.md").read_text(encoding="utf-8")


def test_every_kind_is_measured(run: Path) -> None:
    found = [benchmark["extra_info"] for benchmark in _benchmarks(run)]
    assert {info["kind"] for info in found} == {"time", "memory", "accuracy", "startup"}
    groups = {info["group"].split()[0] for info in found if info["kind"] == "time"}
    assert groups == {"dense", "linear", "scaling", "training", "JAX"}


def test_peers_compute_what_they_say(run: Path) -> None:
    """Each lies as near to the plain form in float64 as float32 lets a textbook form be."""
    errors = {
        (info["name"], info["engine"], info["computes"]): info["value_error"]
        for info in (benchmark["extra_info"] for benchmark in _benchmarks(run))
        if info["kind"] == "accuracy" and info["logits"] == "language"
    }
    assert len(errors) > 40
    assert max(errors.values()) < 1e-3, errors


def test_page_has_every_part(page: str) -> None:
    heads = [line.removeprefix("## ").split(":")[0] for line in page.splitlines() if "## " in line]
    parts = ("Figures to reach", "Dense", "From hidden states", "Memory", "Error", "Startup")
    assert [part for part in parts if part not in heads] == []
    assert {"Cost of an element", "Training step"} <= set(heads)
    assert "amidmath, torch CPU, KL(p‖r), α=-1" in page
    assert "F.kl_div, torch CPU, KL(p‖q)" in page


def test_figure_is_drawn(run: Path, page: str) -> None:
    assert (run.parent / "figures" / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_names_the_machine(run: Path, page: str) -> None:
    words = json.loads(run.read_text(encoding="utf-8"))["machine_info"]
    assert set(words) == {"words", "versions"}
    assert str(ROOT) not in page


@pytest.fixture(scope="module")
def judged(run: Path) -> dict[str, list[str]]:
    """The figures to reach of runs with made-up numbers, all by one process."""
    folders = {}
    for name, change in MADE_UP.items():
        folders[name] = run.parent / name
        folders[name].mkdir()
        raw = json.loads(run.read_text(encoding="utf-8"))
        changed = [benchmark for benchmark in raw["benchmarks"] if change(benchmark) is not False]
        text = json.dumps(raw | {"benchmarks": changed})
        (folders[name] / "results.json").write_text(text, encoding="utf-8")
    done = _python("-c", REPORTS, *(str(folder / "results.json") for folder in folders.values()))
    assert done.returncode == 0, done.stderr
    said = done.stdout.split(END)
    return {name: text.splitlines() for name, text in zip(folders, said, strict=False)}


END = "END OF A REPORT"
REPORTS = f"""
import sys
from benchmarks import report
for results in sys.argv[1:]:
    sys.argv[1:] = [results]
    report.main()
    print({END!r})
"""


def _kl(*seconds: float) -> Callable[[dict[str, Any]], bool | None]:
    """KL takes that long in each sweep, or is not measured; F.kl_div takes one second."""

    def change(benchmark: dict[str, Any]) -> bool | None:
        info = benchmark["extra_info"]
        if info["kind"] == "time" and info["group"].startswith("dense"):
            if info["name"] == "F.kl_div":
                benchmark["stats"]["data"] = [1.0, 1.0]
            elif info["name"] == "amidmath" and info["computes"].startswith("KL("):
                benchmark["stats"]["data"] = list(seconds)
                return bool(seconds)
        return None

    return change


def _step(seconds: float, megabytes: float) -> Callable[[dict[str, Any]], bool | None]:
    """Ours takes that much; transformers takes 1 s and 1 MB, TRL's trainer 2 s."""
    made_up = {"transformers": 1.0, "TRL SFTTrainer": 2.0, "AMiDTrainer": seconds}

    def change(benchmark: dict[str, Any]) -> bool | None:
        info = benchmark["extra_info"]
        if not info.get("group", "").startswith("training"):
            return None
        if info["kind"] == "time":
            benchmark["stats"]["data"] = [made_up[info["name"]]]
        else:
            of_ours = info["name"] == "AMiDTrainer"
            info["above_inputs"] = 1e6 * (1.0 + (megabytes if of_ours else 0.0))
        return None

    return change


MADE_UP = {
    "fast": _kl(0.1, 0.1),
    "slow": _kl(0.9, 0.9),
    "not measured": _kl(),
    "a step of 1.04 s and 190 MB": _step(1.04, 190.0),
    "a step of 1.06 s and 194 MB": _step(1.06, 194.0),
}


@pytest.mark.parametrize(
    ("name", "reached"), [("fast", "yes"), ("slow", "**no**"), ("not measured", "not measured")]
)
def test_verdicts_are_computed(judged: dict[str, list[str]], name: str, reached: str) -> None:
    (row,) = (line for line in judged[name] if line.startswith("| KL, loss"))
    assert row.split(" | ")[-1].removesuffix(" |") == reached


@pytest.mark.parametrize(
    ("name", "reached"),
    [("a step of 1.04 s and 190 MB", "yes"), ("a step of 1.06 s and 194 MB", "**no**")],
)
def test_a_training_step_is_judged_by_the_better_step_on_labels(
    judged: dict[str, list[str]], name: str, reached: str
) -> None:
    rows = [line for line in judged[name] if line.startswith("| training step")]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == [reached, reached]


def _benchmarks(run: Path) -> list[dict[str, Any]]:
    return json.loads(run.read_text(encoding="utf-8"))["benchmarks"]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    # The child is no worker of pytest-xdist's, even where this process is one: those do not time.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment = {**inherited, **UNCOMPILED}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
