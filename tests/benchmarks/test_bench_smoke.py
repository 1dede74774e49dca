"""The benchmarks at tiny shapes: every subject that is here runs, and the report has all parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


@pytest.mark.parametrize(
    ("seconds", "reached"), [((0.1, 0.1), "yes"), ((0.9, 0.9), "**no**"), ((), "not measured")]
)
def test_verdicts_are_computed(
    run: Path, tmp_path: Path, seconds: tuple[float, ...], reached: str
) -> None:
    """The same run with the times of KL made up: F.kl_div takes one second in every sweep."""
    raw = json.loads(run.read_text(encoding="utf-8"))
    kept = []
    for benchmark in raw["benchmarks"]:
        info = benchmark["extra_info"]
        if info["kind"] == "time" and info["group"].startswith("dense"):
            if info["name"] == "F.kl_div":
                benchmark["stats"]["data"] = [1.0, 1.0]
            elif info["name"] == "amidmath" and info["computes"].startswith("KL("):
                if not seconds:
                    continue
                benchmark["stats"]["data"] = list(seconds)
        kept.append(benchmark)
    changed = tmp_path / "results.json"
    changed.write_text(json.dumps(raw | {"benchmarks": kept}), encoding="utf-8")
    done = _python("-m", "benchmarks.report", str(changed))
    assert done.returncode == 0, done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("| KL, loss"))
    assert row.split(" | ")[-1].removesuffix(" |") == reached


@pytest.mark.parametrize(
    ("seconds", "megabytes", "reached"),
    [(1.04, 190.0, "yes"), (1.06, 194.0, "**no**")],
)
def test_a_training_step_is_judged_by_the_better_step_on_labels(
    run: Path, tmp_path: Path, seconds: float, megabytes: float, reached: str
) -> None:
    """The same run with made-up numbers: transformers takes 1 s and 1 MB, TRL's trainer 2 s."""
    raw = json.loads(run.read_text(encoding="utf-8"))
    made_up = {"transformers": 1.0, "TRL SFTTrainer": 2.0, "AMiDTrainer": seconds}
    for benchmark in raw["benchmarks"]:
        info = benchmark["extra_info"]
        if not info.get("group", "").startswith("training"):
            continue
        if info["kind"] == "time":
            benchmark["stats"]["data"] = [made_up[info["name"]]]
        else:
            of_ours = info["name"] == "AMiDTrainer"
            info["above_inputs"] = 1e6 * (1.0 + (megabytes if of_ours else 0.0))
    changed = tmp_path / "results.json"
    changed.write_text(json.dumps(raw), encoding="utf-8")
    done = _python("-m", "benchmarks.report", str(changed))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| training step")]
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
