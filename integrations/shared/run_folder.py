"""What a run leaves behind: configuration, metrics, curves and the student."""

import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.whole_files import staged_dir, staged_file, write_json
from amidmath.integrations.torch_loop.arguments import Arguments
from amidmath.integrations.torch_loop.evaluation import Quality

STUDENT = "student"
RUN = "run.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
CURVES = "curves.png"
PREVIOUS = "previous"


def claim(arguments: Arguments) -> Path | None:
    """Make sure that the run may write to its folder; nothing is changed yet.

    Returns:
        The checkpoint to go on from, if ``--resume_from_checkpoint`` asks for one.

    Raises:
        InputError: the folder cannot be written, holds an earlier run that may not be replaced,
            other files, or what the run is to read; or there is no such checkpoint.
    """
    folder, config = arguments.output_dir, arguments.config
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir: {folder} is a file, not a folder")
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(
            f"--output_dir: cannot create {folder}: {nearest} is not a writable folder"
        )
    inside = folder.resolve()
    script = arguments.script
    for name in (
        arguments.student,
        arguments.teacher,
        script.dataset_name,
        script.eval_dataset_name,
    ):
        if name and Path(name).exists() and Path(name).resolve().is_relative_to(inside):
            raise InputError(
                f"--output_dir: {folder} holds {name}, which the run reads; choose another folder"
            )
    checkpoint = _checkpoint(folder, config.resume_from_checkpoint)
    if not folder.exists() or not any(folder.iterdir()):
        return checkpoint
    if not (folder / RUN).exists():
        raise InputError(
            f"--output_dir: {folder} holds files that are no earlier run; choose a new folder"
        )
    if checkpoint is None and not config.overwrite_output_dir:
        raise InputError(
            f"--output_dir: {folder} holds an earlier run; choose another folder, or replace it "
            "with --overwrite_output_dir"
        )
    return checkpoint


def _checkpoint(folder: Path, asked: str | bool | None) -> Path | None:
    if asked in (None, False, "", "false", "False"):
        return None
    if asked in (True, "true", "True"):
        found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if found is None:
            raise InputError(f"--resume_from_checkpoint: {folder} holds no checkpoint")
        return Path(found)
    path = Path(str(asked))
    if not (path / "trainer_state.json").is_file():
        raise InputError(f"--resume_from_checkpoint: {path} is no checkpoint of a run")
    return path


def open_folder(arguments: Arguments, checkpoint: Path | None) -> None:
    """Begin a run: set an earlier one aside (finish_folder removes it), say what will be done.

    Going on from a checkpoint keeps what is there, and metrics.jsonl up to that step.
    """
    folder = arguments.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        _set_aside(folder)
    else:
        step = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]
        kept = [m for m in read_metrics(folder) if m["model"] == STUDENT and m["step"] <= step]
        with staged_file(folder / METRICS) as partial:
            partial.write_text("".join(json.dumps(m) + "\n" for m in kept), encoding="utf-8")
    content = {
        "loss": arguments.config.recipe().describe(),
        "script": asdict(arguments.script),
        "training": arguments.config.to_dict(),  # leaves hub tokens out
        "model": asdict(arguments.model),
        "model_init": arguments.model_init,
        "versions": {name: version(name) for name in ("amidmath", "torch", "transformers", "trl")},
    }
    write_json(folder / RUN, content)


def finish_folder(folder: Path) -> None:
    """End a run whose student is saved: what it replaces can go."""
    shutil.rmtree(folder / PREVIOUS, ignore_errors=True)


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


def save_student(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the student in Hugging Face format."""
    with staged_dir(folder / STUDENT) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


class Speed(TrainerCallback):
    """Adds tokens_per_second, since training began, to what the trainer logs."""

    def __init__(self) -> None:
        """Start the clock; training starts it again."""
        self.started = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add seconds and speed; the callbacks after this one see them."""
        if logs is not None:
            logs["seconds"] = round(time.perf_counter() - self.started, 3)
            if "num_tokens" in logs:
                logs["tokens_per_second"] = round(logs["num_tokens"] / logs["seconds"], 1)


class MetricsLog(TrainerCallback):
    """Appends every log line of the trainer to metrics.jsonl.

    Args:
        folder: the run folder.
        model: which model is being trained, "student" or "baseline".
    """

    def __init__(self, folder: Path, model: str) -> None:
        """Remember where to write."""
        self.path, self.model = folder / METRICS, model

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if state.is_world_process_zero and logs:
            line = {"model": self.model, "step": state.global_step} | logs
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none if there is no such file."""
    path = folder / METRICS
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def write_results(folder: Path, results: Mapping[str, Quality], title: str) -> None:
    """Write results.json and the plot of the run."""
    figures = {name: asdict(quality) for name, quality in results.items()}
    for figure in figures.values():  # JSON has no infinity
        figure.update({k: str(v) for k, v in figure.items() if not math.isfinite(v)})
    write_json(folder / RESULTS, figures)
    plot(folder, results, title)


def plot(folder: Path, results: Mapping[str, Quality], title: str) -> None:
    """Draw the training loss and the held-out figures to curves.png."""
    figure, (left, *bars) = plt.subplots(
        1, 4, figsize=(13, 3.6), width_ratios=(2.4, 1, 1, 1), layout="constrained"
    )
    steps = [m for m in read_metrics(folder) if m["model"] == STUDENT and "loss" in m]
    left.plot([m["step"] for m in steps], [m["loss"] for m in steps], marker=".")
    left.set(title=title, xlabel="optimiser step", ylabel="training loss (nats a token)")
    left.grid(alpha=0.3)
    titles = {
        "kl": "KL to teacher (nats)",
        "agreement": "top-1 agreement",
        "perplexity": "perplexity",
    }
    colours = [f"C{i}" for i in range(len(results))]
    for axes, (field, label) in zip(bars, titles.items(), strict=True):
        values = [min(getattr(quality, field), 1e30) for quality in results.values()]
        drawn = axes.bar(list(results), values, color=colours)
        axes.bar_label(drawn, fmt="{:.3g}", fontsize=8)
        axes.set_title(label, fontsize=10)
        axes.tick_params(axis="x", labelrotation=30, labelsize=8)
        axes.margins(y=0.12)
        if field == "perplexity":
            axes.set_yscale("log")
    with staged_file(folder / CURVES) as partial:
        figure.savefig(partial, format="png", dpi=120)
    plt.close(figure)
