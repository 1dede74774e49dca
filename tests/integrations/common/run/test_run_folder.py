"""What a command does in its run folder: begin, go on, begin again, nothing, or refuse."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.run.checkpoints import publish, staging_of
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.common.run.run_folder import (
    claim,
    finish_folder,
    open_folder,
    read_figures,
    write_figures,
)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "one"}\n')
    return Record(
        arguments={"training": {"lam": 0.1, "alpha": float("-inf"), "logging_steps": 5}},
        reads={"--dataset_name": str(data), "--model_name_or_path": "owner/model"},
        facts={"loss": "KL", "versions": {"torch": "2.13.0"}},
    )


def changed(record: Record, **changes: Any) -> Record:
    training: Mapping[str, Any] = {**record.arguments["training"], **changes}
    return replace(record, arguments={"training": training})


def add_checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    built = staging_of(checkpoint) / checkpoint.name
    built.mkdir(parents=True)
    (built / "weights").write_text(f"of step {step}")
    publish(checkpoint)
    return checkpoint


@pytest.fixture
def run(tmp_path: Path, record: Record) -> Path:
    """A run that was killed after step 4."""
    folder = tmp_path / "run"
    start = claim(folder, record)
    assert (start.checkpoint, start.is_complete, start.messages) == (None, False, ())
    open_folder(folder, start)
    add_checkpoint(folder, 2)
    add_checkpoint(folder, 4)
    return folder


def test_the_same_command_goes_on(run: Path, record: Record) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    start = claim(run, changed(record, logging_steps=1))
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before
    assert start.checkpoint == run / "checkpoint-4"
    assert start.messages == ("Going on from step 4",)
    open_folder(run, start)
    assert (run / "checkpoint-4").exists()


def test_a_damaged_checkpoint_is_passed_over_aloud(run: Path, record: Record) -> None:
    (run / "checkpoint-4" / "weights").write_text("of")
    start = claim(run, record)
    assert start.checkpoint == run / "checkpoint-2"
    assert "weights has 2 bytes, expected 9" in start.messages[0]
    open_folder(run, start)
    assert not (run / "checkpoint-4").exists()


def test_without_a_checkpoint_it_begins_again(tmp_path: Path, record: Record) -> None:
    folder = tmp_path / "run"
    open_folder(folder, claim(folder, record))
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "metrics.jsonl.partial").write_text("{")
    start = claim(folder, record)
    assert start.checkpoint is None
    assert start.messages[0].startswith("Beginning again at step 0")
    open_folder(folder, start)
    assert [p.name for p in folder.iterdir()] == ["run.json"]


def test_a_complete_run_is_left_alone(run: Path, record: Record) -> None:
    finish_folder(run)
    start = claim(run, record)
    assert start.is_complete
    assert start.messages == (f"The run in {run}/ is complete",)


def test_other_arguments_are_refused_with_both_values(run: Path, record: Record) -> None:
    with pytest.raises(InputError) as caught:
        claim(run, changed(record, lam=0.7, alpha=1.0, new=True))
    message = str(caught.value)
    assert "--lam was 0.1, is 0.7" in message
    assert "--alpha was -Infinity, is 1.0" in message
    assert "--new was not given, is true" in message
    assert "--overwrite_output_dir" in message
    finish_folder(run)
    with pytest.raises(InputError, match=r"--lam was 0\.1, is 0\.7"):
        claim(run, changed(record, lam=0.7))


def test_other_data_of_the_same_name_is_refused(run: Path, record: Record) -> None:
    Path(str(record.reads["--dataset_name"])).write_text('{"text": "two"}\n')
    with pytest.raises(InputError, match="the content of --dataset_name has changed"):
        claim(run, record)


def test_another_number_of_processes_is_refused(run: Path, record: Record) -> None:
    with pytest.raises(InputError, match="1 processes before, 2 now"):
        claim(run, replace(record, processes=2))


def test_other_versions_are_said(run: Path, record: Record) -> None:
    facts = {"versions": {"torch": "2.14.0"}}
    assert "torch was 2.13.0, is 2.14.0" in claim(run, replace(record, facts=facts)).messages[0]


def test_a_checkpoint_that_is_asked_for(run: Path, record: Record) -> None:
    """The later ones go, so that the next break does not go on from them."""
    start = claim(run, changed(record, lam=0.7), resume=str(run / "checkpoint-2"))
    assert start.messages == (
        "Changed since the run began: --lam was 0.1, is 0.7",
        "Going on from step 2",
    )
    open_folder(run, start)
    assert {p.name for p in run.glob("checkpoint-*")} == {"checkpoint-2"}
    assert json.loads((run / "run.json").read_text())["training"]["lam"] == 0.7


def test_going_on_and_beginning_anew_contradict(run: Path, record: Record) -> None:
    with pytest.raises(InputError, match="give one of them"):
        claim(run, record, resume=True, overwrite=True)


def test_beginning_anew_keeps_the_earlier_run_until_the_end(run: Path, record: Record) -> None:
    open_folder(run, claim(run, changed(record, lam=0.7), overwrite=True))
    assert (run / "previous" / "checkpoint-4").exists()
    assert not (run / "checkpoint-4").exists()
    finish_folder(run)
    assert not (run / "previous").exists()


def test_an_unreadable_run_json(run: Path, record: Record) -> None:
    (run / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json cannot be read"):
        claim(run, record)


def test_figures_keep_infinity(tmp_path: Path) -> None:
    figures = {"student": {"kl": 0.1, "perplexity": float("inf"), "tokens": 9}}
    write_figures(tmp_path / "f.json", figures)
    assert "Infinity" not in (tmp_path / "f.json").read_text()
    assert read_figures(tmp_path / "f.json") == figures
    assert read_figures(tmp_path / "none.json") is None
