"""Listeners to a Trainer: the metrics file and the progress bar."""

from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amidmath.integrations.common.run.progress import (
    Clock,
    LiveWords,
    MetricsFile,
    resident_bytes,
)


class Speed(Clock, TrainerCallback):
    """Adds seconds, tokens a second and memory, since training began, to what the trainer logs."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.start()

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
            logs.update(self.fields(logs, memory_in_use(args.device)))


def memory_in_use(device: torch.device) -> int:
    """Bytes: allocated on a GPU, or else the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return resident_bytes()


class MetricsLog(MetricsFile, TrainerCallback):
    """Appends every log line of the trainer to a file, on the main process."""

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
        self.append(state.global_step, logs or {})


class ProgressBar(TrainerCallback):
    """Steps done and time left, tokens a second, memory, and the figures that are logged.

    Args:
        title: stands before the bar.
    """

    def __init__(self, title: str) -> None:
        """Start without a bar."""
        self.title = title
        self.bar: Any = None
        self.words = LiveWords()

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
        if self.bar is None or not logs:
            return
        words = self.words.of(logs)
        if words is not None:
            self.bar.set_postfix_str(words)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()
