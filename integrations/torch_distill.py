"""Distil a causal language model, by any method and data policy, on TRL's SFTTrainer.

    python integrations/torch_distill.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --dataset_name data.jsonl --output_dir runs/mine \
        --divergence kl --order pr --alpha -1 --lam 0.1

Takes a hub name, a local folder or a file (.json, .jsonl, .parquet, .txt, .csv) with TRL's
columns, and the arguments of TRL's SFTConfig and ModelConfig. ``--help`` lists them. The same
command again goes on with a run that did not end.
"""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# On a CPU that another process uses too, threads that spin while they wait cost far more than
# they save: with two cores, a step took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from accelerate import PartialState
from rich.console import Console
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, set_seed
from trl import SFTTrainer

from amidmath.integrations.common.cli.command_line import exit_status
from amidmath.integrations.common.cli.memory import LOADING, TRAINING, within_memory
from amidmath.integrations.common.cli.quiet import LibraryLog, quiet
from amidmath.integrations.common.errors import while_preparing
from amidmath.integrations.common.evaluation.quality import Quality, as_table, plain, warnings_about
from amidmath.integrations.common.evaluation.task_scores import in_words
from amidmath.integrations.common.run import run_folder
from amidmath.integrations.common.run.model_card import write_card
from amidmath.integrations.common.run.plots import plot
from amidmath.integrations.torch_loop.devices.processes import (
    BeforeFirstStep,
    main_console,
    whole_weights,
)
from amidmath.integrations.torch_loop.evaluation.task_scores import student_scores
from amidmath.integrations.torch_loop.logs.callbacks import MetricsLog, ProgressBar, Speed
from amidmath.integrations.torch_loop.run.console import caption, judge, print_header
from amidmath.integrations.torch_loop.run.dry_run import estimate_of
from amidmath.integrations.torch_loop.run.loading import cross_entropy_trainer, prepare
from amidmath.integrations.torch_loop.run.records import card, record
from amidmath.integrations.torch_loop.settings.arguments import Arguments, parse_arguments
from amidmath.integrations.torch_loop.training.checkpoints import on_main_process, save_model


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
    is_new, limit = not folder.exists(), arguments.script.max_eval_samples
    claim = partial(
        run_folder.claim,
        folder,
        record(arguments),
        resume=config.resume_from_checkpoint,
        overwrite=config.overwrite_output_dir,
    )
    before: dict[str, Quality] = {}
    try:
        with while_preparing(), within_memory("loading the models", LOADING):
            start = on_main_process(claim)
            for message in start.messages:
                console.print(message, highlight=False, soft_wrap=True)
            if start.is_complete:
                return folder
            console.print("Reading the data and loading the models")
            trainer = prepare(arguments)
            print_header(console, trainer, arguments)
            if arguments.script.dry_run:
                memory = estimate_of(trainer, arguments.script.baseline)
                console.print(memory.describe(), highlight=False, soft_wrap=True)
                return folder
            saved = run_folder.read_figures(folder / run_folder.BEFORE)
            if start.checkpoint is not None and saved is not None:
                before |= {name: Quality.of(figures) for name, figures in saved.items()}
            elif not trainer.is_sharded:
                before |= judge(trainer, {"student before": trainer.student}, limit)
    finally:
        # The Trainer makes it early. One process removes it: the first may be writing by the time
        # that another is here.
        first = PartialState().is_main_process
        if first and is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    on_main_process(lambda: run_folder.open_folder(folder, start))
    if log is not None:
        log.into(folder, PartialState().process_index)

    def compare_before() -> None:
        if not before:  # an engine that shares weights out has the student from here on
            before.update(judge(trainer, {"student before": trainer.student}, limit))
        on_main_process(lambda: run_folder.write_figures(folder / run_folder.BEFORE, plain(before)))
        for warning in warnings_about(before):
            console.print(f"[bold yellow]Warning:[/bold yellow] {warning}")

    trainer.add_callback(BeforeFirstStep(compare_before))
    train(trainer, "distilling", folder, run_folder.STUDENT, start.checkpoint)
    weights = whole_weights(trainer)
    student = folder / run_folder.STUDENT
    on_main_process(lambda: save_model(student, trainer.student, trainer.tokenizer, weights))
    trained = {"student after": trainer.student}
    asked = trainer.task_scores
    scores = {} if asked is None else {"student after": student_scores(asked, trainer)}
    if arguments.script.baseline:
        baseline = cross_entropy_trainer(trainer, arguments)
        train(baseline, "cross-entropy baseline", folder, "baseline", None)
        trained["cross-entropy only"] = cast("PreTrainedModel", baseline.model)
        if asked is not None:
            scores["cross-entropy only"] = student_scores(asked, baseline)
    results = before | judge(trainer, trained, limit)
    on_main_process(lambda: finish(arguments, trainer, results, scores))
    console.print(as_table(results, caption(trainer, results)))
    for model, found in scores.items():
        console.print(f"{model}: {in_words(found)}", highlight=False, soft_wrap=True)
    console.print(f"Student, metrics and curves are in {folder}/", highlight=False)
    if log is not None and log.count:
        console.print(log.describe(), highlight=False, soft_wrap=True)
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
    return folder


def train(
    trainer: SFTTrainer, title: str, folder: Path, name: str, checkpoint: Path | None
) -> None:
    """Train with our progress bar and metrics file in place of the default printing."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Speed())
    trainer.add_callback(MetricsLog(folder / run_folder.METRICS, name))
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar(title))
    set_seed(trainer.args.seed)  # preparing has drawn from the generators
    with within_memory("training", TRAINING):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def finish(
    arguments: Arguments,
    trainer: SFTTrainer,
    results: dict[str, Quality],
    scores: Mapping[str, Mapping[str, float]],
) -> None:
    """Write results, scores, curves and the model card; the run is complete then."""
    folder = arguments.output_dir
    figures = {name: {**of, **scores.get(name, {})} for name, of in plain(results).items()}
    run_folder.write_figures(folder / run_folder.RESULTS, figures)
    lines, title = run_folder.read_metrics(folder), arguments.config.recipe().describe()
    plot(folder / run_folder.CURVES, lines, figures, title)
    write_card(folder / run_folder.STUDENT, card(arguments, trainer.state, figures))
    run_folder.finish_folder(folder)


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the run is complete, 1 when training cannot go on, 2 when something given does not
        fit, 130 when interrupted.
    """
    with quiet(argv) as log:
        return exit_status(
            lambda: distill(parse_arguments(argv), main_console(), log),
            "checkpoints, if any, are kept",
        )


if __name__ == "__main__":
    sys.exit(main())
