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

from amidmath.integrations.common.errors import InputError, first_paragraph
from amidmath.integrations.common.storage.whole_files import write_json

KNOWN = "trackers.json"
"""The file of a run folder with what trackers know its logs by."""

# transformers' own.
_PROJECT = "huggingface"


@dataclass(frozen=True)
class Log:
    """The log that a tracker is to keep.

    Args:
        name: of the run, for people.
        known: the ``key`` of the tracker's log that goes on; None for one that begins.
        project: what the run belongs to.
        folder: the run folder.
        step: the steps that are logged already; None for a new run.
        arguments: of the run, by name.
    """

    name: str
    known: str | None
    project: str
    folder: Path
    step: int | None
    arguments: Mapping[str, Any]


class Tracker(Protocol):
    """Somewhere that figures are kept; ``key`` is what it knows the log by."""

    key: str

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
        self.key = log.known or log.name
        self.writer = module.SummaryWriter(str(folder / self.key), purge_step=first)
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
        self.key = log.known or uuid4().hex
        self.run = module.init(
            project=log.project,
            name=log.name,
            id=self.key,
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
    """Trackio, which goes on with the latest run of a name, so that each has a name of its own."""

    def __init__(self, module: Any, log: Log) -> None:
        """Begin a run, or go on with it."""
        self.run = module.init(
            project=log.project,
            name=log.known or f"{log.name}-{uuid4().hex[:8]}",
            resume="never" if log.known is None else "allow",
            config=dict(log.arguments),
        )
        self.key: str = self.run.name  # of a name that is taken, some releases make another one

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
        project: the environment variable with the project, where none is given.
    """

    module: str
    open: Callable[[Any, Log], Tracker]
    project: str | None = None


TRACKERS = {
    "tensorboard": Kind("tensorboardX", TensorBoard),
    "wandb": Kind("wandb", WeightsAndBiases, project="WANDB_PROJECT"),
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
        spec = find_spec(module)
        if spec is None or spec.origin is None:  # a mere folder, such as wandb makes, has no origin
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
    project: str | None,
    folder: Path,
    step: int | None,
    arguments: Mapping[str, Any],
) -> Iterator[Report]:
    """A report to some trackers, while the block runs.

    Args:
        names: of the trackers.
        model: what trains, "student" or "baseline"; each has a log of its own.
        run_name: of the run.
        project: what the run belongs to; None for what the tracker's environment variable says.
        folder: the run folder.
        step: of the checkpoint that the run goes on from; None to begin a new log.
        arguments: of the run, by name.

    Raises:
        InputError: a tracker cannot begin.
    """
    name = run_name if model == "student" else f"{run_name}-{model}"
    of_folder = _known(folder / KNOWN)
    known = {} if step is None else of_folder.get(model, {})
    trackers: list[Tracker] = []
    with ExitStack() as stack:
        for kind in names:
            variable = TRACKERS[kind].project
            given = project or (variable and os.environ.get(variable)) or _PROJECT
            earlier = known.get(kind, {})
            key = earlier.get("key") if earlier.get("project") == given else None
            log = Log(name, key, given, folder, step, arguments)
            trackers.append(_open(kind, log, stack))
            known[kind] = {"project": given, "key": trackers[-1].key}
        if names:
            write_json(folder / KNOWN, {**of_folder, model: known})
        yield Report(trackers)


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


def forget(folder: Path) -> None:
    """A run folder's training begins at its first step: no log goes on."""
    (folder / KNOWN).unlink(missing_ok=True)


def _known(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """The project and the key of each log, by model and tracker."""
    found: dict[str, dict[str, dict[str, str]]] = (
        json.loads(path.read_text("utf-8")) if path.exists() else {}
    )
    return found


def _tag(name: str) -> str:
    """The name that a tracker shows: eval/loss for eval_loss, and train/loss for loss."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
