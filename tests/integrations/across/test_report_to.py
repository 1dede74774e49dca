"""What --report_to is given: every figure of metrics.jsonl."""

import importlib
import json
import struct
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tiny import SENTENCES, write_jsonl

from amidmath.integrations import jax_distill, torch_distill
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.jax_loop.logs.trackers import (
    TRACKERS,
    Kind,
    Log,
    forget,
    named,
    reporting,
)
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

Points = dict[str, list[tuple[int, float]]]

FIGURES = {
    **{f"train/{name}": name for name in ("loss", "kl", "overlap", "lam", "num_tokens")},
    **{f"eval/{name}": f"eval_{name}" for name in ("loss", "kl", "overlap")},
}


@pytest.fixture
def command(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> list[str]:
    """A run of four steps, with a figure of every kind."""
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": s} for s in SENTENCES * 3])
    return [
        *("--model_name_or_path", str(student_dir)),
        *("--teacher_model_name_or_path", str(teacher_dir)),
        *("--dataset_name", str(data), "--output_dir", str(tmp_path / "run")),
        *("--max_length", "64", "--max_steps", "4", "--per_device_train_batch_size", "4"),
        *("--schedule", "lam=linear:0.1:0.9", "--eval_strategy", "steps", "--eval_steps", "1"),
        *("--logging_steps", "1", "--save_steps", "2"),
    ]


def events(path: Path) -> Iterator[Event]:
    """The records of an event file: a length and its checksum, the bytes and theirs."""
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event()
        event.ParseFromString(content[12 : 12 + length])
        yield event
        content = content[16 + length :]


def shown(folder: Path) -> tuple[Points, dict[str, str]]:
    """The points that TensorBoard shows of all event files of a folder, and the texts."""
    points: Points = {}
    texts: dict[str, str] = {}
    for path in sorted(folder.glob("events.*")):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                points = {k: [p for p in v if p[0] < event.step] for k, v in points.items()}
            for value in event.summary.value:
                if value.HasField("tensor"):
                    texts[value.tag] = value.tensor.string_val[0].decode()
                else:
                    points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points, texts


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def of(lines: list[dict[str, Any]], name: str) -> list[tuple[int, Any]]:
    return [(line["step"], pytest.approx(line[name])) for line in lines if name in line]


def test_torch_gives_tensorboard_our_figures(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    more = ["--report_to", "tensorboard", "--use_cpu"]
    assert torch_distill.main([*command, *more]) == 0
    points, _ = shown(tmp_path / "events")
    lines = logged(tmp_path / "run")
    for tag, name in FIGURES.items():
        assert len(points[tag]) == 4
        assert points[tag] == of(lines, name), tag


class Remembered:
    """As much of wandb's and Trackio's runs as is used; a run that is new may get another name."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.name = ""

    def init(self, **settings: Any) -> "Remembered":
        self.calls.append(("init", settings))
        self.name = settings["name"] + (" given" if settings["resume"] == "never" else "")
        return self

    def define_metric(self, name: str, **settings: Any) -> None:
        self.calls.append(("define", (name, settings)))

    def log(self, figures: dict[str, float], step: int | None = None) -> None:
        self.calls.append(("log", (step, figures)))

    def finish(self, **settings: Any) -> None:
        self.calls.append(("finish", settings))

    def of(self, name: str) -> list[Any]:
        return [what for call, what in self.calls if call == name]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> dict[str, Remembered]:
    """Stand-ins of wandb and Trackio, which are large."""
    found = {}
    for name in ("wandb", "trackio"):
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, origin="a test")
        found[name] = Remembered()
        module.init = found[name].init
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_jax_gives_every_tracker_our_figures_and_goes_on_with_its_log(
    command: list[str],
    others: dict[str, Remembered],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run, step = tmp_path / "run", JaxTrainer.make_step

    def stops(self: JaxTrainer) -> None:
        if self.step == 3:
            raise KeyboardInterrupt
        step(self)

    words = [*command, "--report_to", "tensorboard,wandb", "trackio", "--project", "tests"]
    monkeypatch.setattr(JaxTrainer, "make_step", stops)
    assert jax_distill.main(words) == 130
    assert "is beyond the last step" not in capsys.readouterr().out
    broken = logged(run)
    monkeypatch.setattr(JaxTrainer, "make_step", step)
    assert jax_distill.main(words) == 0
    lines = logged(run)
    figures = {
        ("eval/" + name[5:] if name.startswith("eval_") else "train/" + name): name
        for line in lines
        for name in line.keys() - {"model", "step"}
    }
    assert FIGURES.items() <= figures.items()
    points, texts = shown(run / "runs" / "run")
    assert points.keys() == figures.keys()
    for tag, name in figures.items():
        assert points[tag] == of(lines, name), tag
    assert json.loads(texts["args/text_summary"])["learning_rate"] == 2e-5

    # The others keep what is done again: steps 1 to 3, and from the checkpoint on 3 and 4.
    expected = broken + lines[-4:]
    wandb, trackio = others["wandb"], others["trackio"]
    named_as_shown = [
        (line["step"], {tag: line[name] for tag, name in figures.items() if name in line})
        for line in expected
    ]
    assert trackio.of("log") == named_as_shown
    assert wandb.of("log") == [
        (None, {**line, "train/global_step": at}) for at, line in named_as_shown
    ]
    assert ("*", {"step_metric": "train/global_step", "step_sync": True}) in wandb.of("define")
    assert wandb.of("finish") == [{"exit_code": 1}, {"exit_code": 0}]
    assert trackio.of("finish") == [{}, {}]
    first, second = wandb.of("init")
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("tests", "run", "allow")
    assert Path(first["dir"]) == run
    assert first["config"]["max_steps"] == 4
    assert [x["resume"] for x in trackio.of("init")] == ["never", "allow"]


def test_every_new_run_has_a_log_of_its_own(
    others: dict[str, Remembered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "run_name": "mine",
        "project": "tests",
        "folder": tmp_path,
        "arguments": {},
    }
    for model, at in (("student", None), ("student", 2), ("baseline", None), ("student", None)):
        with reporting(["wandb"], model=model, step=at, **settings) as report:
            report.log(1, {"loss": 1.0})
    one, again, baseline, other = others["wandb"].of("init")
    assert one["project"] == "tests"
    assert one["id"] == again["id"]
    assert len({one["id"], baseline["id"], other["id"]}) == 3
    assert [run["name"] for run in (one, baseline)] == ["mine", "mine-baseline"]
    with reporting([], model="student", step=None, **settings) as report:
        report.log(1, {"loss": 1.0})


def test_trackio_goes_on_by_the_name_that_it_gave(
    others: dict[str, Remembered], tmp_path: Path
) -> None:
    trackio = others["trackio"]

    def told(model: str, at: int | None, project: str = "tests") -> tuple[str, str, str]:
        with reporting(
            ["trackio"],
            model=model,
            step=at,
            run_name="mine",
            project=project,
            folder=tmp_path,
            arguments={},
        ):
            settings = trackio.of("init")[-1]
            return settings["resume"], settings["name"], trackio.name

    # The first checkpoint was made without Trackio, which knows no such run.
    how, asked, first = told("student", 2)
    assert (how, first) == ("never", f"{asked} given")
    assert told("student", 4) == ("allow", first, first)
    how, asked, baseline = told("baseline", None)
    assert how == "never"
    assert asked.startswith("mine-baseline-")
    assert told("student", 6) == ("allow", first, first)
    how, _, anew = told("student", None)  # overwrites it
    assert how == "never"
    assert told("student", 2) == ("allow", anew, anew)
    how, _, elsewhere = told("student", 4, "others")
    assert how == "never"
    assert len({first, baseline, anew, elsewhere}) == 4
    forget(tmp_path)
    assert told("student", 2)[0] == "never"


@pytest.mark.parametrize(
    ("given", "variable", "expected"),
    [
        ("mine", "theirs", {"wandb": "mine", "trackio": "mine"}),
        (None, "theirs", {"wandb": "theirs", "trackio": "huggingface"}),
        (None, None, {"wandb": "huggingface", "trackio": "huggingface"}),
    ],
)
def test_an_explicit_project_wins(
    given: str | None,
    variable: str | None,
    expected: dict[str, str],
    others: dict[str, Remembered],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    with reporting(
        list(expected),
        model="student",
        step=None,
        run_name="mine",
        project=given,
        folder=tmp_path,
        arguments={},
    ):
        pass
    assert {name: others[name].of("init")[0]["project"] for name in expected} == expected


class Failing:
    """A tracker that cannot begin."""

    def __init__(self, module: Any, log: Log) -> None:
        raise RuntimeError(f"no key for {log.project}")


def test_a_tracker_that_cannot_begin(
    others: dict[str, Remembered], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "failing", Kind("json", Failing))
    names = named(["wandb", "failing"])
    start = reporting(
        names,
        model="student",
        run_name="mine",
        project="tests",
        folder=tmp_path,
        step=None,
        arguments={},
    )
    with pytest.raises(InputError, match="--report_to failing: it cannot begin: no key for tests"):
        start.__enter__()
    assert others["wandb"].of("finish") == [{"exit_code": 1}]


def test_which_trackers_are_named(others: dict[str, Remembered]) -> None:
    assert named(None) == named(["none"]) == []
    assert named(["tensorboard,wandb", "trackio", "wandb"]) == ["tensorboard", "wandb", "trackio"]
    with pytest.raises(InputError, match=r"--report_to must name some of .*trackio.*got 'comet'"):
        named(["wandb,comet"])


def test_a_folder_of_the_same_name_is_no_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "eleventh", Kind("no_package", Failing))
    (tmp_path / "no_package").mkdir()
    with pytest.raises(InputError, match="--report_to eleventh: no_package is not installed"):
        named(["eleventh"])
    (tmp_path / "no_package" / "__init__.py").touch()
    importlib.invalidate_caches()
    assert named(["eleventh"]) == ["eleventh"]


def test_a_tracker_that_is_not_installed(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TRACKERS, "tenth", Kind("no_such_module", Failing))
    assert jax_distill.main([*command, "--report_to", "tenth"]) == 2
    assert "--report_to tenth: no_such_module is not installed; `pip install no_such_module`" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
