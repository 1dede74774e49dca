"""Distil a causal language model with the AMiD loss, on TRL's SFTTrainer.

    python integrations/torch_distill.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --dataset_name data.jsonl --output_dir runs/mine \
        --divergence kl --order pr --alpha -1 --lam 0.1

Takes a hub name, a local folder or a file (.json, .jsonl, .parquet, .txt, .csv) with TRL's
columns, and the arguments of TRL's SFTConfig and ModelConfig. ``--help`` lists them.
"""

import copy
import os
import sys
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# On a CPU that another process uses too, threads that spin while they wait cost far more than
# they save: with two cores, a step took ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    set_seed,
)
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging as transformers_logging
from trl import SFTTrainer, get_peft_config, get_quantization_config

from amidmath.integrations.shared import run_folder
from amidmath.integrations.shared.data import load_splits
from amidmath.integrations.shared.errors import InputError, while_preparing
from amidmath.integrations.torch_loop.arguments import Arguments, parse_arguments
from amidmath.integrations.torch_loop.console import (
    ProgressBar,
    judge,
    print_header,
    print_table,
    warnings_about,
)
from amidmath.integrations.torch_loop.models import (
    check_tokenizers,
    freeze_embeddings,
    load_model,
    load_tokenizer,
)
from amidmath.integrations.torch_loop.trainer import AMiDTrainer

TEACHER_FLAG = "--teacher_model_name_or_path"

# Preparing fewer rows than this takes seconds, and a dozen bars would hide the header.
ROWS_WITHOUT_BARS = 20_000


def distill(arguments: Arguments, console: Console) -> Path:
    """Run a whole distillation; gives the run folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
    """
    folder = arguments.output_dir
    is_new = not folder.exists()
    try:
        with while_preparing():
            checkpoint = run_folder.claim(arguments)
            console.print("Reading the data and loading the models")
            trainer = prepare(arguments)
            print_header(console, trainer, arguments)
            held_out = held_out_batches(trainer, arguments.script.max_eval_samples)
            before = judge(
                console, trainer.teacher.model, held_out, {"student before": trainer.student}
            )
    except InputError:
        if is_new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()  # the Trainer makes it early
        raise
    for warning in warnings_about(before["teacher"], before["student before"]):
        console.print(f"[bold yellow]Warning:[/bold yellow] {warning}")

    run_folder.open_folder(arguments, checkpoint)
    train(trainer, "distilling", folder, run_folder.STUDENT, checkpoint)
    run_folder.save_student(folder, trainer.student, trainer.tokenizer)
    trained = {"student after": trainer.student}
    if arguments.script.baseline:
        baseline = cross_entropy_trainer(trainer, arguments)
        train(baseline, "cross-entropy baseline", folder, "baseline", None)
        trained["cross-entropy only"] = cast("PreTrainedModel", baseline.model)
    results = before | judge(console, trainer.teacher.model, held_out, trained)

    run_folder.write_results(folder, results, trainer.recipe.describe())
    run_folder.finish_folder(folder)
    count = results["teacher"].tokens
    print_table(console, results, f"on {count:,} held-out tokens; KL in nats a token")
    console.print(f"Student, metrics and curves are in {folder}/", highlight=False)
    if trainer.args.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
    return folder


def prepare(arguments: Arguments) -> AMiDTrainer:
    """Load everything and find out whether it fits together, up to the first optimiser step."""
    config = arguments.config
    if config.world_size > 1:
        raise InputError(
            f"this run was started with {config.world_size} processes; evaluation and the run "
            "folder are written for one process so far"
        )
    train_rows, test_rows = load_splits(arguments.script, config.dataset_text_field, config.seed)
    if len(train_rows) < ROWS_WITHOUT_BARS:
        datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    revision = arguments.model.model_revision
    tokenizer = load_tokenizer("--model_name_or_path", arguments.student, revision=revision)
    teacher = {"revision": config.teacher_model_revision}
    check_tokenizers(tokenizer, load_tokenizer(TEACHER_FLAG, arguments.teacher, **teacher))
    trainer = AMiDTrainer(
        load_student(arguments),
        load_model(TEACHER_FLAG, arguments.teacher, dtype=config.teacher_dtype, **teacher),
        config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(arguments.model),
    )
    trainer.get_train_dataloader()
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    trainer.optimizer = trainer.lr_scheduler = None  # train makes them anew
    return trainer


def load_student(arguments: Arguments) -> PreTrainedModel:
    """The student as the arguments describe it."""
    model = arguments.model
    settings = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype or "float32",
        "quantization_config": get_quantization_config(model),
    }
    student = load_model(
        "--model_name_or_path", arguments.student, **(settings | arguments.model_init)
    )
    if arguments.config.freeze_embeddings:
        freeze_embeddings(student)
    return student


def cross_entropy_trainer(distilled: AMiDTrainer, arguments: Arguments) -> SFTTrainer:
    """A trainer that differs in the loss alone: same start, rows, order, steps and optimiser."""
    config = copy.copy(arguments.config)
    config.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are prepared already
    config.save_strategy, config.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    config.load_best_model_at_end = config.push_to_hub = False
    return SFTTrainer(
        load_student(arguments),
        config,
        train_dataset=distilled.train_rows,
        processing_class=distilled.tokenizer,
        peft_config=get_peft_config(arguments.model),
    )


def train(
    trainer: SFTTrainer, title: str, folder: Path, name: str, checkpoint: Path | None
) -> None:
    """Train with our progress bar and metrics file in place of the default printing."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(run_folder.Speed())
    trainer.add_callback(run_folder.MetricsLog(folder, name))
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ProgressBar(title))
    set_seed(trainer.args.seed)  # evaluating has drawn from the generators
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def held_out_batches(trainer: AMiDTrainer, limit: int | None) -> "DataLoader[Any]":
    """The held-out rows in batches, the first ``limit`` of them."""
    rows = trainer.eval_rows
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    return trainer.get_eval_dataloader(cast("Any", rows))


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the run is complete, 2 when something given does not fit, 130 when interrupted.
    """
    try:
        distill(parse_arguments(argv), Console())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; checkpoints, if any, are kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
