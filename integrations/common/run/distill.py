"""A distillation from its arguments to the student, whatever library trains it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from amidmath.integrations.common.cli.memory import LOADING, within_memory
from amidmath.integrations.common.cli.quiet import LibraryLog
from amidmath.integrations.common.errors import while_preparing
from amidmath.integrations.common.evaluation.quality import Quality, as_table, plain, warnings_about
from amidmath.integrations.common.run import run_folder
from amidmath.integrations.common.run.arguments import RunArguments
from amidmath.integrations.common.run.model_card import Card, write_card
from amidmath.integrations.common.run.plots import plot
from amidmath.integrations.common.run.record import Record
from amidmath.integrations.common.tasks.scores import in_words

T = TypeVar("T")
Model = TypeVar("Model")
Trained = TypeVar("Trained", covariant=True)

BEFORE, AFTER, BASELINE = "student before", "student after", "cross-entropy only"
"""The models that a run judges, by the names that its results give them."""


class Processes(Protocol):
    """The processes that train together."""

    @property
    def index(self) -> int:
        """Of this process; 0 is the main one's."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """A block that an InputError of any process ends on every process."""
        ...

    def agreed(self, work: Callable[[], T]) -> T:
        """The finding of ``work`` in the run folder, the same on every process."""
        ...

    def on_main(self, work: Callable[[], None]) -> None:
        """Work that changes the run folder: the main process's, while the others wait."""
        ...


class Training(Protocol[Trained]):
    """A model and what trains it."""

    @property
    def model(self) -> Trained:
        """The model as it is now."""
        ...

    def train(
        self, title: str, name: str, checkpoint: Path | None, at_start: Callable[[], None]
    ) -> None:
        """Train to the last step.

        Args:
            title: of the progress bar.
            name: of the model in metrics.jsonl.
            checkpoint: to go on from; None for the first step.
            at_start: called on every process before the first step, once the model can be judged.

        Raises:
            TrainingError: training cannot go on; what was saved before is kept.
        """
        ...

    def scores(self) -> Mapping[str, float] | None:
        """The scores of the model's answers on the run's task; None if it has no task."""
        ...


class Run(Protocol[Model]):
    """All that a run is made of, loaded and found to fit together.

    Attributes:
        is_sharded: the student's weights are shared out, and it can be judged from its training on.
    """

    @property
    def student(self) -> Training[Model]:
        """The student, which the distillation loss trains."""
        ...

    @property
    def is_sharded(self) -> bool: ...  # noqa: D102

    def baseline(self) -> Training[Model]:
        """A student from the same start, on the same rows in the same order, by cross-entropy."""
        ...

    def print_header(self, console: Console) -> None:
        """Say what is about to happen, a line a fact."""
        ...

    def memory(self) -> str:
        """The memory that a training step would take, in words; nothing is trained."""
        ...

    def judge(self, models: Mapping[str, Model], limit: int | None) -> dict[str, Quality]:
        """Figures of some models, and of a teacher in memory, on the first held-out rows."""
        ...

    def compared_in_words(self) -> str:
        """Over which tokens student and teacher were compared, to follow "in nats a token"."""
        ...

    def save(self, folder: Path) -> None:
        """Write the student as it is now; called on every process."""
        ...

    def card(self, figures: Mapping[str, Mapping[str, float]]) -> Card:
        """The student's model card, once it is trained."""
        ...

    def publish(self) -> None:
        """Send the run to a hub, if that was asked for."""
        ...


class Loop(Protocol[Model]):
    """A framework's part of a distillation."""

    @property
    def arguments(self) -> RunArguments:
        """The arguments of the run."""
        ...

    @property
    def processes(self) -> Processes:
        """Who trains together."""
        ...

    def record(self) -> Record:
        """The run, to be compared with what its folder holds."""
        ...

    def load(self, console: Console) -> Run[Model]:
        """Models and data, found to fit together up to the first optimiser step.

        Raises:
            InputError: something does not fit.
        """
        ...


def distill(loop: Loop[Model], console: Console, log: LibraryLog | None = None) -> Path:
    """Run a whole distillation; gives the run folder.

    Args:
        loop: what a framework does for it, with the arguments of the run.
        console: for people; prints on the main process.
        log: what the libraries say, which goes to the run folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
        TrainingError: training cannot go on; what was saved before is kept.
    """
    arguments, processes = loop.arguments, loop.processes
    folder, limit = arguments.output_dir, arguments.script.max_eval_samples
    is_new = not folder.exists()
    say = partial(console.print, highlight=False, soft_wrap=True)
    before: dict[str, Quality] = {}
    try:
        with processes.together(), while_preparing(), within_memory("loading the models", LOADING):
            start = processes.agreed(partial(_claim, loop))
            for message in start.messages:
                say(message)
            if start.is_complete:
                return folder
            console.print("Reading the data and loading the models")
            run = loop.load(console)
            run.print_header(console)
            if arguments.script.dry_run:
                say(run.memory())
                return folder
            saved = run_folder.read_figures(folder / run_folder.BEFORE)
        with while_preparing():
            if start.checkpoint is not None and saved is not None:
                before |= {name: Quality.of(figures) for name, figures in saved.items()}
            elif not run.is_sharded:
                before |= run.judge({BEFORE: run.student.model}, limit)
    finally:
        # A trainer may make it early. One process removes it: the first may be writing by the time
        # that another is here.
        if processes.index == 0 and is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    processes.on_main(lambda: run_folder.open_folder(folder, start))
    if log is not None:
        log.into(folder, processes.index)

    def compare_before() -> None:
        if not before:
            before.update(run.judge({BEFORE: run.student.model}, limit))
        figures = plain(before)
        processes.on_main(lambda: run_folder.write_figures(folder / run_folder.BEFORE, figures))
        for warning in warnings_about(before):
            console.print(f"[bold yellow]Warning:[/bold yellow] {warning}")

    run.student.train("distilling", run_folder.STUDENT, start.checkpoint, compare_before)
    run.save(folder / run_folder.STUDENT)
    trained = {AFTER: run.student}
    scores = {AFTER: run.student.scores()}
    if arguments.script.baseline:
        trained[BASELINE] = baseline = run.baseline()
        baseline.train("cross-entropy baseline", "baseline", None, lambda: None)
        scores[BASELINE] = baseline.scores()
    found = {name: of for name, of in scores.items() if of is not None}
    results = before | run.judge({name: each.model for name, each in trained.items()}, limit)
    processes.on_main(lambda: _finish(arguments, run, results, found))
    count = next(iter(results.values())).tokens
    over = run.compared_in_words()
    console.print(as_table(results, f"on {count:,} held-out tokens; KL in nats a token{over}"))
    for model, of_task in found.items():
        say(f"{model}: {in_words(of_task)}")
    console.print(f"Student, metrics and curves are in {folder}/", highlight=False)
    if log is not None and log.count:
        say(log.describe())
    run.publish()
    return folder


def _claim(loop: Loop[Model]) -> run_folder.Start:
    config = loop.arguments.config
    return run_folder.claim(
        loop.arguments.output_dir,
        loop.record(),
        resume=config.resume_from_checkpoint,
        overwrite=config.overwrite_output_dir,
    )


def _finish(
    arguments: RunArguments,
    run: Run[Model],
    results: Mapping[str, Quality],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Write results, scores, curves and the model card; the run is complete then."""
    folder = arguments.output_dir
    figures = {name: {**of, **scores.get(name, {})} for name, of in plain(results).items()}
    run_folder.write_figures(folder / run_folder.RESULTS, figures)
    lines, title = run_folder.read_metrics(folder), arguments.config.recipe().describe()
    plot(folder / run_folder.CURVES, lines, figures, title)
    write_card(folder / run_folder.STUDENT, run.card(figures))
    run_folder.finish_folder(folder)
