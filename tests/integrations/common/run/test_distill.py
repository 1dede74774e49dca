"""A distillation as every loop runs it, by a loop that trains nothing and notes what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from rich.console import Console

from amidmath.integrations.common.errors import InputError, TrainingError
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.policies.settings import PolicySettings
from amidmath.integrations.common.recipe.settings import LossSettings, TeacherSettings
from amidmath.integrations.common.run import run_folder
from amidmath.integrations.common.run.arguments import card_of, record_of
from amidmath.integrations.common.run.distill import distill
from amidmath.integrations.common.run.model_card import Card
from amidmath.integrations.common.tasks.scores import UNFINISHED
from amidmath.integrations.common.tasks.settings import TaskScoreSettings

T = TypeVar("T")


@dataclass
class Config(PolicySettings, LossSettings, TeacherSettings):
    resume_from_checkpoint: str | None = None


@dataclass
class Script:
    dataset_name: str | None = "data"
    eval_dataset_name: str | None = None
    max_eval_samples: int | None = 7
    baseline: bool = False
    dry_run: bool = False


@dataclass
class Arguments:
    output_dir: Path
    script: Script = field(default_factory=Script)
    config: Config = field(default_factory=Config)
    scores: TaskScoreSettings = field(default_factory=TaskScoreSettings)
    student: str = "student"
    teacher: str | None = "teacher"


class Alone:
    index = 0

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes

    @contextmanager
    def together(self) -> Iterator[None]:
        yield
        self.notes.append("together")

    def agreed(self, work: Callable[[], T]) -> T:
        return work()

    def on_main(self, work: Callable[[], None]) -> None:
        work()


@dataclass
class Training:
    loop: Loop
    model: str

    def train(
        self, title: str, name: str, checkpoint: Path | None, at_start: Callable[[], None]
    ) -> None:
        at_start()
        self.loop.notes.append(f"train {name} from {checkpoint and checkpoint.name}")
        if self.loop.fails:
            raise TrainingError("no memory left")

    def scores(self) -> dict[str, float] | None:
        return {"rouge_l": 50.0, UNFINISHED: 0.0} if self.loop.scored else None


@dataclass
class Loop:
    """Both the loop and the run, for whom a model is its name."""

    arguments: Arguments
    is_sharded: bool = False
    scored: bool = False
    fails: bool = False
    refuses: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def processes(self) -> Alone:
        return Alone(self.notes)

    def record(self) -> run_folder.Record:
        config = self.arguments.config
        return record_of(self.arguments, {"training": {"lam": config.lam}}, ["amidmath"], 1)

    def load(self, console: Console) -> Loop:
        self.arguments.output_dir.mkdir(exist_ok=True)  # as a trainer does
        if self.refuses:
            raise InputError("--alpha is none")
        return self

    @property
    def student(self) -> Training:
        return Training(self, "distilled")

    def baseline(self) -> Training:
        return Training(self, "plain")

    def print_header(self, console: Console) -> None:
        console.print("the header")

    def memory(self) -> str:
        return "a few bytes"

    def judge(self, models: Mapping[str, str], limit: int | None) -> dict[str, Quality]:
        self.notes.append(f"judge {', '.join(models)} on {limit}")
        found = {"teacher": 2.0} | dict.fromkeys(models, 3.0)
        return {name: Quality(0.5, 0.25, perplexity, 10) for name, perplexity in found.items()}

    def compared_in_words(self) -> str:
        return ", over all tokens"

    def save(self, folder: Path) -> None:
        folder.mkdir()
        self.notes.append("save")

    def card(self, figures: Mapping[str, Mapping[str, float]]) -> Card:
        return card_of(
            self.arguments,
            figures,
            ["amidmath"],
            steps=3,
            sequences_a_step=2,
            tokens=None,
            has_adapter=False,
        )

    def publish(self) -> None:
        self.notes.append("publish")


def run(loop: Loop) -> str:
    console = Console(record=True, width=200)
    assert distill(loop, console) == loop.arguments.output_dir
    return console.export_text()


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / run_folder.RESULTS).read_text("utf-8"))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_everything_in_its_order(folder: Path) -> None:
    loop = Loop(Arguments(folder))
    said = run(loop)
    assert loop.notes == [
        "together",
        "judge student before on 7",
        "train student from None",
        "save",
        "judge student after on 7",
        "publish",
    ]
    assert list(figures(folder)) == ["teacher", "student before", "student after"]
    assert "on 10 held-out tokens; KL in nats a token, over all tokens" in said
    assert json.loads((folder / run_folder.RUN).read_text("utf-8"))["status"] == "complete"
    assert (folder / "student" / "README.md").is_file()
    assert not (folder / run_folder.BEFORE).exists()


def test_a_run_that_is_complete_is_left_as_it_is(folder: Path) -> None:
    run(Loop(Arguments(folder)))
    again = Loop(Arguments(folder))
    assert "is complete" in run(again)
    assert again.notes == ["together"]


def test_a_student_in_parts_is_judged_once_it_trains(folder: Path) -> None:
    loop = Loop(Arguments(folder), is_sharded=True)
    run(loop)
    assert loop.notes[1:3] == ["judge student before on 7", "train student from None"]
    assert "student before" in figures(folder)


def test_the_baseline_and_the_scores_are_beside_the_student(folder: Path) -> None:
    loop = Loop(Arguments(folder, Script(baseline=True)), scored=True)
    said = run(loop)
    assert loop.notes[2:6] == [
        "train student from None",
        "save",
        "train baseline from None",
        "judge student after, cross-entropy only on 7",
    ]
    found = figures(folder)
    assert [found[name].get("rouge_l") for name in found] == [None, None, 50.0, 50.0]
    assert "cross-entropy only: ROUGE-L 50.00 %" in said


def test_a_broken_run_goes_on_with_the_figures_of_before(folder: Path) -> None:
    with pytest.raises(TrainingError):
        run(Loop(Arguments(folder), fails=True))
    saved = json.loads((folder / run_folder.BEFORE).read_text("utf-8"))
    saved["student before"]["perplexity"] = 11.0
    run_folder.write_figures(folder / run_folder.BEFORE, saved)
    checkpoint = folder / "checkpoint-2"
    checkpoint.mkdir()
    loop = Loop(Arguments(folder, config=Config(resume_from_checkpoint=str(checkpoint))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "require_whole", lambda path: None)
        run(loop)
    assert loop.notes[1] == "train student from checkpoint-2"
    assert figures(folder)["student before"]["perplexity"] == 11.0


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "dry run"])
def test_nothing_is_left_of_a_run_that_does_not_begin(refused: bool, folder: Path) -> None:
    loop = Loop(Arguments(folder, Script(dry_run=True)), refuses=refused)
    if refused:
        with pytest.raises(InputError, match=r"^--alpha is none$"):
            run(loop)
    else:
        assert run(loop).splitlines()[-1] == "a few bytes"
    assert not folder.exists()


def test_a_teacher_that_is_no_better_is_a_warning(folder: Path) -> None:
    class Worse(Loop):
        def judge(self, models: Mapping[str, str], limit: int | None) -> dict[str, Quality]:
            found = super().judge(models, limit)
            return {**found, "teacher": Quality(0.0, 1.0, 4.0, 10)}

    assert "Warning: the teacher's held-out perplexity (4.00) is no better" in run(
        Worse(Arguments(folder))
    )
