"""What listens to a Trainer: the metrics file and the progress bar."""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amidmath.integrations.shared.whole_files import staged_file

TIME_FIELDS = frozenset(
    {
        *("seconds", "tokens_per_second", "memory_mb"),
        *("train_runtime", "train_samples_per_second", "train_steps_per_second"),
        *("eval_runtime", "eval_samples_per_second", "eval_steps_per_second"),
    }
)
"""What of a line of metrics.jsonl depends on the machine; all else is the same in every run."""

# What the bar shows beside the loss, when it is logged.
_LIVE = {"kl": "KL", "overlap": "overlap", "alpha": "α", "lam": "λ", "temperature": "T"}


class Speed(TrainerCallback):
    """Adds seconds, tokens a second and memory, since training began, to what the trainer logs.

    Time between a break and going on does not count.
    """

    def __init__(self) -> None:
        """Start the clock; training starts it again."""
        self.started = time.perf_counter()

    def state(self) -> dict[str, Any]:
        """The seconds so far."""
        return {"seconds": time.perf_counter() - self.started}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on counting from there."""
        self.started = time.perf_counter() - state["seconds"]

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
        """Add them; the callbacks after this one see them."""
        if logs is not None:
            logs["seconds"] = round(time.perf_counter() - self.started, 3)
            if "num_tokens" in logs:
                logs["tokens_per_second"] = round(logs["num_tokens"] / logs["seconds"], 1)
            logs["memory_mb"] = round(memory_in_use(args.device) / 1e6, 1)


def memory_in_use(device: torch.device) -> int:
    """Bytes: allocated on a GPU, or else the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the largest so far is what there is
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * resource.getpagesize()


class MetricsLog(TrainerCallback):
    """Appends every log line of the trainer to a file, on the main process.

    The lines are part of its state: going on from a checkpoint, the file is put back to what it
    was then, whatever was written after.

    Args:
        path: the file, one JSON object a line.
        model: which model is being trained, "student" or "baseline".
    """

    def __init__(self, path: Path, model: str) -> None:
        """Remember where to write."""
        self.path, self.model = path, model
        self.is_writer = False

    def state(self) -> dict[str, Any]:
        """All lines so far."""
        text = self.path.read_text("utf-8") if self.is_writer and self.path.exists() else ""
        return {"lines": text.splitlines()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put the file back."""
        if self.is_writer:
            with staged_file(self.path) as partial:
                partial.write_text("".join(f"{line}\n" for line in state["lines"]), "utf-8")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Only the main process writes."""
        self.is_writer = state.is_world_process_zero

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write one line."""
        if self.is_writer and logs:
            line = {"model": self.model, "step": state.global_step, **_plain(logs)}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _plain(logs: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON, which has no infinity and no NaN: these become words."""
    odd = {k: str(v) for k, v in logs.items() if isinstance(v, float) and not math.isfinite(v)}
    return {**logs, **odd}


class ProgressBar(TrainerCallback):
    """Steps done and time left, tokens a second, memory, and the figures that are logged.

    Args:
        title: stands before the bar.
    """

    def __init__(self, title: str) -> None:
        """Start without a bar."""
        self.title = title
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar on the main process."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                dynamic_ncols=True,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the figures."""
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(figures(logs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def figures(logs: Mapping[str, Any]) -> str:
    """The live figures of a log line, in a few words."""
    words = [f"loss {float(logs['loss']):.4f}"]
    words += [f"{label} {float(logs[k]):.3g}" for k, label in _LIVE.items() if k in logs]
    if "tokens_per_second" in logs:
        words.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if "memory_mb" in logs:
        words.append(f"{logs['memory_mb'] / 1e3:.1f} GB")
    return ", ".join(words)
