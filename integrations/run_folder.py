"""What a run leaves behind: configuration, metrics, curves and the student."""

import json
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

from amidmath.integrations.distill_arguments import Arguments
from amidmath.integrations.distill_errors import InputError
from amidmath.integrations.distill_eval import Quality
from amidmath.integrations.whole_files import staged_dir, staged_file, write_json

STUDENT = "student"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
CURVES = "curves.png"


def claim(folder: Path, *, replace: bool) -> None:
    """Make sure that a run may write here; nothing is removed or created yet.

    Raises:
        InputError: an earlier run is there and may not be replaced, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir: {folder} is a file, not a folder")
    if not replace and any((folder / name).exists() for name in (STUDENT, METRICS)):
        raise InputError(
            f"--output_dir: {folder} holds an earlier run; choose another folder, or replace it "
            "with --overwrite_output_dir"
        )


def open_folder(folder: Path, arguments: Arguments, *, keep_metrics: bool) -> None:
    """Create the folder, clear an earlier run's files out of it, and write the configuration.

    Args:
        folder: the run folder.
        arguments: what the run was told.
        keep_metrics: the run goes on from a checkpoint, and so does metrics.jsonl.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / STUDENT, ignore_errors=True)
    for name in (RESULTS, CURVES) if keep_metrics else (RESULTS, CURVES, METRICS):
        (folder / name).unlink(missing_ok=True)
    content = {
        "loss": repr(arguments.config.loss()),
        "script": asdict(arguments.script),
        "training": arguments.config.to_dict(),  # leaves tokens out
        "model": asdict(arguments.model),
        "versions": {name: version(name) for name in ("amidmath", "torch", "transformers", "trl")},
    }
    write_json(folder / CONFIG, content)


def save_student(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the student in Hugging Face format."""
    with staged_dir(folder / STUDENT) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


class MetricsLog(TrainerCallback):
    """Appends every log line of the trainer to metrics.jsonl.

    Args:
        folder: the run folder.
        model: which model is being trained, "student" or "baseline".
    """

    def __init__(self, folder: Path, model: str) -> None:
        """Remember where to write."""
        self.path, self.model = folder / METRICS, model
        self.started = time.perf_counter()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
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
        """Write one line."""
        if state.is_world_process_zero and logs:
            seconds = time.perf_counter() - self.started
            line = {"model": self.model, "step": state.global_step, "seconds": round(seconds, 3)}
            if "num_tokens" in logs:
                line["tokens_per_second"] = round(logs["num_tokens"] / seconds, 1)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | logs) + "\n")


def read_metrics(folder: Path, model: str) -> list[dict[str, Any]]:
    """The logged training steps of one model."""
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    return [m for m in map(json.loads, lines) if m["model"] == model and "loss" in m]


def write_results(folder: Path, results: Mapping[str, Quality], title: str) -> None:
    """Write results.json and the plot of the run."""
    write_json(folder / RESULTS, {name: asdict(quality) for name, quality in results.items()})
    plot(folder, results, title)


def plot(folder: Path, results: Mapping[str, Quality], title: str) -> None:
    """Draw the training loss and the held-out figures to curves.png."""
    figure, (left, *bars) = plt.subplots(
        1, 4, figsize=(13, 3.6), width_ratios=(2.4, 1, 1, 1), layout="constrained"
    )
    steps = read_metrics(folder, STUDENT)
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
        values = [getattr(quality, field) for quality in results.values()]
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
