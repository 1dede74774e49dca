"""Trackers of experiments: who is told of a run's figures beside metrics.jsonl.

``TRACKERS`` has one entry a tracker; a new tracker is a new entry.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from amidmath.integrations.shared.errors import InputError, first_paragraph
from amidmath.integrations.shared.whole_files import write_json

IDS = "trackers.json"
"""The file of a run folder with what trackers know its logs by."""


@dataclass(frozen=True)
class Log:
    """What a tracker is to keep.

    Args:
        name: of the run, for people.
        id: of the run, its own.
        project: what the run belongs to.
        folder: the run folder.
        step: the steps that are logged already; None for a new run.
        arguments: of the run, by name.
    """

    name: str
    id: str
    project: str
    folder: Path
    step: int | None
    arguments: Mapping[str, Any]


class Tracker(Protocol):
    """Somewhere that figures are kept."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Keep the figures of an optimiser step."""
        ...

    def finish(self, failed: bool) -> None:
        """There are no more."""
        ...


class TensorBoard:
    """Event files, in the run folder's ``runs``, or in ``TENSORBOARD_LOGGING_DIR``.

    A run that goes on adds a file, which takes back the points that it will log again.
    """

    def __init__(self, module: Any, log: Log) -> None:
        """Open a file, with tensorboardX."""
        place = os.environ.get("TENSORBOARD_LOGGING_DIR")
        folder = log.folder / "runs" if place is None else Path(place).expanduser()
        first = 0 if log.step is None else log.step + 1
        self.writer = module.SummaryWriter(str(folder / log.name), purge_step=first)
        self.writer.add_text("args", json.dumps(dict(log.arguments), indent=2, default=str))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, failed: bool) -> None:
        """See :class:`Tracker`."""
        self.writer.close()


class WeightsAndBiases:
    """Weights & Biases; what it keeps on this machine is in the run folder, or in ``WANDB_DIR``."""

    def __init__(self, module: Any, log: Log) -> None:
        """Begin a run, or go on with it."""
        self.run = module.init(
            project=os.environ.get("WANDB_PROJECT", log.project),
            name=log.name,
            id=log.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(log.folder)),
            config=dict(log.arguments),
        )
        # Its own count of steps only grows, and would refuse those that are made again.
        self.run.define_metric("train/global_step")
        self.run.define_metric("*", step_metric="train/global_step", step_sync=True)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self.run.log({**figures, "train/global_step": step})

    def finish(self, failed: bool) -> None:
        """See :class:`Tracker`."""
        self.run.finish(exit_code=int(failed))


class Trackio:
    """Trackio, which knows a run by its name."""

    def __init__(self, module: Any, log: Log) -> None:
        """Begin a run, or go on with it."""
        self.run = module.init(
            project=log.project,
            name=log.name,
            resume="never" if log.step is None else "allow",
            config=dict(log.arguments),
        )

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See :class:`Tracker`."""
        self.run.log(dict(figures), step=step)

    def finish(self, failed: bool) -> None:
        """See :class:`Tracker`."""
        self.run.finish()


@dataclass(frozen=True)
class Kind:
    """A tracker that there is.

    Args:
        module: what it is imported as; pip installs it by the same name.
        open: begins a log by the module, or goes on with it.
    """

    module: str
    open: Callable[[Any, Log], Tracker]


TRACKERS = {
    "tensorboard": Kind("tensorboardX", TensorBoard),
    "wandb": Kind("wandb", WeightsAndBiases),
    "trackio": Kind("trackio", Trackio),
}


def named(words: Sequence[str] | None) -> list[str]:
    """The trackers that ``--report_to`` names, each once: ``tensorboard,wandb``, or a list.

    Raises:
        InputError: one that is not known, or not installed.
    """
    names = [name.strip() for word in words or () for name in word.split(",")]
    names = [name for name in dict.fromkeys(names) if name not in ("", "none")]
    for name in names:
        if name not in TRACKERS:
            raise InputError(
                f"--report_to must name some of {', '.join(TRACKERS)}, or be none, got {name!r}"
            )
        module = TRACKERS[name].module
        if find_spec(module) is None:
            raise InputError(
                f"--report_to {name}: {module} is not installed; `pip install {module}`, or leave "
                f"{name} out"
            )
    return names


class Report:
    """Tells trackers of the lines of a log.

    Args:
        trackers: all that are told.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """See the class."""
        self.trackers = trackers

    def log(self, step: int, logs: Mapping[str, Any]) -> None:
        """A line, its figures by the names that transformers' trainer gives them."""
        for tracker in self.trackers:
            tracker.log({_tag(name): float(value) for name, value in logs.items()}, step)


@contextmanager
def reporting(
    names: Sequence[str],
    *,
    model: str,
    run_name: str,
    project: str,
    folder: Path,
    step: int | None,
    arguments: Mapping[str, Any],
) -> Iterator[Report]:
    """A report to some trackers, while the block runs.

    Args:
        names: of the trackers.
        model: what trains, "student" or "baseline"; each has a log of its own.
        run_name: of the run.
        project: what the run belongs to.
        folder: the run folder.
        step: of the checkpoint that the run goes on from; None to begin a new log.
        arguments: of the run, by name.

    Raises:
        InputError: a tracker cannot begin.
    """
    name = run_name if model == "student" else f"{run_name}-{model}"
    identity = _identity(folder / IDS, model, is_new=step is None) if names else ""
    log = Log(name, identity, project, folder, step, arguments)
    with ExitStack() as stack:
        yield Report([_open(kind, log, stack) for kind in names])


def _open(name: str, log: Log, stack: ExitStack) -> Tracker:
    """A tracker that is finished with the stack."""

    def finish(error: type[BaseException] | None, *_: object) -> None:
        tracker.finish(failed=error is not None)

    try:
        kind = TRACKERS[name]
        tracker = kind.open(import_module(kind.module), log)
    except Exception as error:  # they raise what they like
        raise InputError(
            f"--report_to {name}: it cannot begin: {first_paragraph(error)}; make it work, or "
            f"leave {name} out"
        ) from error
    stack.push(finish)
    return tracker


def _identity(path: Path, model: str, is_new: bool) -> str:
    """What the model's log is known by, which stays as long as the run goes on."""
    known: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if is_new or model not in known:
        known[model] = uuid4().hex
        write_json(path, known)
    return known[model]


def _tag(name: str) -> str:
    """The name that a tracker shows: eval/loss for eval_loss, and train/loss for loss."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
