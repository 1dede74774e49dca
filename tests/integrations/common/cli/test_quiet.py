"""The terminal has our lines; what libraries say is in the run folder, or comes with --verbose."""

import logging
import warnings
from pathlib import Path

import datasets
import pytest
from tiny import words, write_jsonl
from transformers.utils import logging as transformers_logging

from amidmath.integrations import jax_distill, torch_distill
from amidmath.integrations.common.cli.quiet import LOG, is_verbose, quiet

SCRIPTS = {"torch": torch_distill.main, "jax": jax_distill.main}


def speak() -> None:
    warnings.warn("a warning", stacklevel=1)
    transformers_logging.get_logger("transformers.models").warning("a message")
    logging.getLogger("absl").error("an error")


def test_libraries_are_heard_in_the_file_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (warnings.showwarning, logging.getLogger("transformers").propagate)
    with warnings.catch_warnings(), quiet([]) as log:
        warnings.simplefilter("always")
        speak()
        assert not transformers_logging.is_progress_bar_enabled()
        assert datasets.are_progress_bars_disabled()
        assert log.count == 0
        log.into(tmp_path)
        speak()
    text = (tmp_path / LOG).read_text("utf-8")
    for said in (
        "UserWarning: a warning",
        "transformers.models: a message",
        "ERROR absl: an error",
    ):
        assert text.count(said) == 2
    assert log.describe() == f"6 messages of the libraries in {tmp_path / LOG}"
    assert capfd.readouterr() == ("", "")
    assert (warnings.showwarning, logging.getLogger("transformers").propagate) == before
    assert transformers_logging.is_progress_bar_enabled()


def test_of_several_processes_each_has_a_file(tmp_path: Path) -> None:
    with quiet([]) as log:
        log.into(tmp_path, 3)
        logging.getLogger("trl").warning("here")
    assert "here" in (tmp_path / "log-3.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "verbose"),
    [
        (["--verbose"], True),
        (["--verbose", "true", "--seed", "1"], True),
        (["--verbose", "--seed", "1"], True),
        (["--verbose", "False"], False),
        (["--verbose=false"], False),
        (["--verbose", "true", "--verbose", "no"], False),
        ([], False),
    ],
)
def test_verbose(words: list[str], verbose: bool) -> None:
    assert is_verbose(words) == verbose
    with quiet(words):
        assert transformers_logging.is_progress_bar_enabled() == verbose


@pytest.mark.parametrize("framework", SCRIPTS)
def test_a_run(
    framework: str,
    student_dir: Path,
    teacher_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    arguments = {
        "model_name_or_path": student_dir,
        "teacher_model_name_or_path": teacher_dir,
        "dataset_name": write_jsonl(tmp_path / "rows.jsonl", [{"text": "some text"}] * 8),
        "output_dir": folder,
        "max_length": 32,
        "max_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": "true",
    }
    command = words(arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert SCRIPTS[framework](command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("Reading the data and loading the models\n")
    assert "already has </s>" in (folder / LOG).read_text("utf-8")  # the tokenizer's warning
    assert "of the libraries in" in said.out
