"""The folder of a run, and whether the same command begins, goes on, or has nothing to do."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.run.checkpoints import newest_whole, require_whole, step_of
from amidmath.integrations.common.run.record import Record, differences
from amidmath.integrations.common.storage.whole_files import write_json

STUDENT = "student"
RUN = "run.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
CURVES = "curves.png"
PREVIOUS = "previous"
BEFORE = "before.json"


@dataclass(frozen=True)
class Start:
    """The standing of a command to its run folder.

    Args:
        content: for run.json.
        checkpoint: to go on from; None to begin at the first step.
        is_complete: the very same run has ended already; there is nothing to do.
        replaces: an earlier run is to be set aside.
        messages: what a person should read.
    """

    content: Mapping[str, Any]
    checkpoint: Path | None = None
    is_complete: bool = False
    replaces: bool = False
    messages: tuple[str, ...] = ()


def claim(
    folder: Path, record: Record, *, resume: str | bool | None = None, overwrite: bool = False
) -> Start:
    """Find out what a command is to do in its run folder; nothing is changed yet.

    A run that did not end goes on from its newest whole checkpoint, or begins again if there is
    none. One that ended is complete. That holds for the very same run: ``FREE`` arguments apart,
    the same arguments, data and models.

    Args:
        folder: the run folder.
        record: the run that is asked for.
        resume: a checkpoint, or True for the newest; goes on from there with whatever arguments,
            and says which differ.
        overwrite: begin anew in any case.

    Raises:
        InputError: the folder cannot be written, holds another run, other files, or what the run
            is to read; there is no such checkpoint; or none is whole.
    """
    _check_place(folder, record)
    resume = None if resume in (None, False, "", "false", "False") else resume
    if resume is not None and overwrite:
        raise InputError(
            "--resume_from_checkpoint goes on with a run and --overwrite_output_dir begins anew: "
            "give one of them"
        )
    content = record.content()
    messages: list[str] = []
    checkpoint = None if resume is None else _asked(folder, resume, messages)
    if not folder.exists() or not any(folder.iterdir()):
        if checkpoint is not None:
            messages.append(f"Going on from {checkpoint}")
        return Start(content, checkpoint, messages=tuple(messages))
    if not (folder / RUN).exists():
        raise InputError(
            f"--output_dir: {folder} holds files that are no earlier run; choose a new folder"
        )
    if overwrite:
        return Start(content, replaces=True)
    earlier = _read_run(folder)
    changes = differences(earlier, content)
    if checkpoint is not None:
        messages += [f"Changed since the run began: {change}" for change in changes]
        messages.append(f"Going on from step {step_of(checkpoint)}")
        return Start(content, checkpoint, messages=tuple(messages))
    if changes:
        raise InputError(
            f"--output_dir: {folder} holds another run: {'; '.join(changes)}. Give the same "
            "arguments to go on with it, choose another folder, replace it with "
            "--overwrite_output_dir, or go on with these arguments with "
            "--resume_from_checkpoint true"
        )
    if earlier.get("status") == "complete":
        return Start(content, is_complete=True, messages=(f"The run in {folder}/ is complete",))
    messages += _versions(earlier, content)
    checkpoint = newest_whole(folder, messages.append)
    if checkpoint is None:
        messages.append("Beginning again at step 0: the run ended before its first checkpoint")
    else:
        messages.append(f"Going on from step {step_of(checkpoint)}")
    return Start(content, checkpoint, messages=tuple(messages))


def open_folder(folder: Path, start: Start) -> None:
    """Begin or go on: set an earlier run aside (finish_folder removes it), say what will be done.

    Going on keeps what is there; the metrics of later steps go when training restores its state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if start.replaces:
        _set_aside(folder)
    elif start.checkpoint is None:
        for name in (METRICS, RESULTS, CURVES):
            (folder / name).unlink(missing_ok=True)
    else:
        step = step_of(start.checkpoint)
        for path in folder.glob("checkpoint-*"):  # the next break must not go on from these
            if path.name.split("-")[1].isdigit() and step_of(path) > step:
                shutil.rmtree(path)
    _remove_leftovers(folder)
    write_json(folder / RUN, {"status": "running", **start.content})


def finish_folder(folder: Path) -> None:
    """End a run whose student and results are saved: what it replaces can go."""
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)
    write_json(folder / RUN, {**_read_run(folder), "status": "complete"})
    (folder / BEFORE).unlink(missing_ok=True)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if there is no such file."""
    path = folder / METRICS
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def write_figures(path: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Write held-out figures, such as results.json, model by model."""
    plain = {  # JSON has no infinity
        model: {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
        for model, values in figures.items()
    }
    write_json(path, plain)


def read_figures(path: Path) -> dict[str, dict[str, float]] | None:
    """Read what ``write_figures`` wrote; None if there is no such file."""
    if not path.exists():
        return None
    content = json.loads(path.read_text("utf-8"))
    return {
        model: {k: float(v) if isinstance(v, str) else v for k, v in values.items()}
        for model, values in content.items()
    }


def _check_place(folder: Path, record: Record) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir: {folder} is a file, not a folder")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(
            f"--output_dir: cannot create {folder}: {nearest} is not a writable folder"
        )
    inside = folder.resolve()
    for name in record.reads.values():
        if name and Path(name).exists() and Path(name).resolve().is_relative_to(inside):
            raise InputError(
                f"--output_dir: {folder} holds {name}, which the run reads; choose another folder"
            )


def _asked(folder: Path, resume: str | bool, messages: list[str]) -> Path:
    """The checkpoint that was asked for; a damaged one is refused."""
    if resume in (True, "true", "True"):
        found = newest_whole(folder, messages.append)
        if found is None:
            raise InputError(f"--resume_from_checkpoint: {folder} holds no checkpoint")
        return found
    checkpoint = Path(str(resume))
    require_whole(checkpoint)
    return checkpoint


def _read_run(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / RUN).read_text("utf-8"))
    except ValueError as error:
        raise InputError(
            f"--output_dir: {folder / RUN} cannot be read ({error}); choose another folder, or "
            "replace the run with --overwrite_output_dir"
        ) from error
    return content


def _versions(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    before, after = earlier.get("versions", {}), now.get("versions", {})
    return [
        f"{name} was {before[name]}, is {after[name]}: the run may not end with the same bits"
        for name in sorted(before.keys() & after.keys())
        if before[name] != after[name]
    ]


def _set_aside(folder: Path) -> None:
    """Move an earlier run into previous/, unless that holds a student and this one does not."""
    previous = folder / PREVIOUS
    earlier = [path for path in folder.iterdir() if path != previous]
    if (previous / STUDENT).exists() and not (folder / STUDENT).exists():
        for path in earlier:  # what is left of a run that did not finish
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    shutil.rmtree(previous, ignore_errors=True)
    previous.mkdir()
    for path in earlier:
        path.rename(previous / path.name)
    if not earlier:
        previous.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written: files and folders being replaced."""
    for path in folder.glob("*.partial"):
        path.unlink()
    for path in folder.glob(f".{STUDENT}-*"):
        shutil.rmtree(path)
