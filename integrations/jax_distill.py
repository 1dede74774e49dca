"""Distil a causal language model, by any method and data policy, on a mesh of JAX devices.

    python integrations/jax_distill.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --dataset_name data.jsonl --output_dir runs/mine \
        --divergence kl --order pr --alpha -1 --lam 0.1

The flags, the data, the run folder and the configuration files are those of torch_distill.py;
``--mesh`` says how devices share the work. ``--help`` lists all. The same command again goes on
with a run that did not end.
"""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
from rich.console import Console
from tqdm.auto import tqdm

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.memory import EVALUATION, LOADING, TRAINING, within_memory
from amidmath.integrations.common.cli.quiet import LibraryLog, quiet
from amidmath.integrations.common.errors import while_preparing
from amidmath.integrations.common.evaluation.quality import Quality, as_table, plain, warnings_about
from amidmath.integrations.common.evaluation.task_scores import in_words
from amidmath.integrations.common.run import run_folder
from amidmath.integrations.common.run.checkpoints import step_of
from amidmath.integrations.common.run.model_card import write_card
from amidmath.integrations.common.run.plots import plot
from amidmath.integrations.common.run.progress import MetricsFile
from amidmath.integrations.common.text.vocabularies import compared_in_words
from amidmath.integrations.jax_loop.devices.processes import is_main, join, together, wait_for_all
from amidmath.integrations.jax_loop.evaluation.task_scores import student_scores
from amidmath.integrations.jax_loop.logs.trackers import forget, reporting
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.run.loading import Prepared, cross_entropy_trainer, prepare
from amidmath.integrations.jax_loop.run.report import card, memory_in_words, print_header, record
from amidmath.integrations.jax_loop.settings.arguments import Arguments, parse_arguments
from amidmath.integrations.jax_loop.teachers.teachers import CachedTeacher, ModelTeacher
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer


def distill(arguments: Arguments, console: Console, log: LibraryLog | None = None) -> Path:
    """Run a whole distillation; gives the run folder.

    Args:
        arguments: what it was told.
        console: for people.
        log: what the libraries say, which goes to the run folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
        TrainingError: training cannot go on; what was saved before is kept.
    """
    folder, config = arguments.output_dir, arguments.config
    limit = arguments.script.max_eval_samples
    with together(), while_preparing(), within_memory("loading the models", LOADING):
        start = run_folder.claim(
            folder,
            record(arguments),
            resume=config.resume_from_checkpoint,
            overwrite=config.overwrite_output_dir,
        )
        for message in start.messages:
            console.print(message, highlight=False, soft_wrap=True)
        if start.is_complete:
            return folder
        console.print("Reading the data and loading the models")
        prepared = prepare(arguments, partial(console.print, highlight=False, soft_wrap=True))
        trainer = prepared.trainer
        print_header(console, prepared, arguments)
        if arguments.script.dry_run:
            console.print(memory_in_words(prepared), highlight=False, soft_wrap=True)
            return folder
        saved = run_folder.read_figures(folder / run_folder.BEFORE)
    with while_preparing():
        if start.checkpoint is not None and saved is not None:
            before = {name: Quality.of(figures) for name, figures in saved.items()}
        else:
            before = judge(prepared, {"student before": trainer.student}, limit)
    wait_for_all("claimed")
    if is_main():
        run_folder.open_folder(folder, start)
        if start.checkpoint is None:
            forget(folder)
        run_folder.write_figures(folder / run_folder.BEFORE, plain(before))
    wait_for_all("opened")
    if log is not None:
        log.into(folder, jax.process_index())
    for warning in warnings_about(before):
        console.print(f"[bold yellow]Warning:[/bold yellow] {warning}")
    train(trainer, "distilling", arguments, run_folder.STUDENT, start.checkpoint)
    prepared.save(folder / run_folder.STUDENT, arguments)
    trained, asked = {"student after": trainer.student}, trainer.task_scores
    scores = {} if asked is None else {"student after": student_scores(asked, trainer)}
    if arguments.script.baseline:
        baseline = cross_entropy_trainer(prepared, arguments)
        train(baseline, "cross-entropy baseline", arguments, "baseline", None)
        trained["cross-entropy only"] = baseline.student
        if asked is not None:
            scores["cross-entropy only"] = student_scores(asked, baseline)
    results = before | judge(prepared, trained, limit)
    if is_main():
        finish(arguments, trainer, results, scores)
    console.print(as_table(results, caption(trainer, results)))
    for model, found in scores.items():
        console.print(f"{model}: {in_words(found)}", highlight=False, soft_wrap=True)
    console.print(f"Student, metrics and curves are in {folder}/", highlight=False)
    if log is not None and log.count:
        console.print(log.describe(), highlight=False, soft_wrap=True)
    wait_for_all("finished")
    return folder


def train(
    trainer: JaxTrainer, title: str, arguments: Arguments, name: str, checkpoint: Path | None
) -> None:
    """Train with a progress bar, a metrics file, and trackers if some are asked for."""
    folder, config = arguments.output_dir, arguments.config
    trainer.metrics = MetricsFile(folder / run_folder.METRICS, name)
    trainer.metrics.is_writer = is_main()
    report = reporting(
        (config.report_to or ()) if is_main() else (),
        model=name,
        run_name=config.run_name or folder.absolute().name,
        project=config.project,
        folder=folder,
        step=None if checkpoint is None else step_of(checkpoint),
        arguments={
            k: v for group in record(arguments).arguments.values() for k, v in group.items()
        },
    )
    with ExitStack() as stack:
        with together():
            trainer.report = stack.enter_context(report)
        stack.enter_context(trainer.progress(title, config.disable_tqdm or not is_main()))
        with within_memory("training", TRAINING):
            trainer.train(checkpoint)


def judge(
    prepared: Prepared, models: Mapping[str, Decoder], limit: int | None
) -> dict[str, Quality]:
    """Figures of some models, and of a teacher in memory, on the first held-out rows."""
    trainer = prepared.trainer
    bar = tqdm(
        prepared.held_out(limit),
        desc=f"evaluating {' and '.join(models)}",
        unit="batch",
        leave=False,
        dynamic_ncols=True,
        disable=trainer.config.disable_tqdm or not is_main(),
    )
    with within_memory("evaluating", EVALUATION):
        return prepared.judge(models, bar)


def finish(
    arguments: Arguments,
    trainer: JaxTrainer,
    results: dict[str, Quality],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Write results, scores, curves and the model card; the run is complete then."""
    folder = arguments.output_dir
    figures = {name: {**of, **scores.get(name, {})} for name, of in plain(results).items()}
    run_folder.write_figures(folder / run_folder.RESULTS, figures)
    lines, title = run_folder.read_metrics(folder), arguments.config.recipe().describe()
    plot(folder / run_folder.CURVES, lines, figures, title)
    write_card(folder / run_folder.STUDENT, card(arguments, trainer, figures))
    run_folder.finish_folder(folder)


def caption(trainer: JaxTrainer, results: Mapping[str, Quality]) -> str:
    """What the figures of the table are."""
    count, teacher = next(iter(results.values())).tokens, trainer.teacher
    over = ""
    if isinstance(teacher, CachedTeacher):
        over = f", {teacher.rows.compared()}" if teacher.rows.held_out is not None else ""
    elif isinstance(teacher, ModelTeacher):
        ours, theirs = (m.config.vocabulary for m in (trainer.student, teacher.model))
        over = compared_in_words(ours, theirs, trainer.config.vocab)
    return f"on {count:,} held-out tokens; KL in nats a token{over}"


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the run is complete, 1 when training cannot go on, 2 when something given does not
        fit, 130 when interrupted.
    """

    def work() -> None:
        join()
        with together():
            arguments = parse_arguments(argv)
        distill(arguments, Console(quiet=not is_main()), log)

    with quiet(argv) as log:
        return exit_status(work, "checkpoints, if any, are kept")


if __name__ == "__main__":
    sys.exit(main())
