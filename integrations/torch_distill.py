"""Distil a causal language model with the AMiD loss, on TRL's SFTTrainer.

    python integrations/torch_distill.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --dataset_name data.jsonl --output_dir runs/mine \
        --divergence kl --order pr --alpha -1 --lam 0.1

Takes a hub name, a local folder or a file (.json, .jsonl, .parquet, .txt, .csv) with TRL's
columns, and every argument of TRL's SFTConfig and ModelConfig. ``--help`` lists them.
"""

import copy
import sys
from pathlib import Path
from typing import Any, cast

import datasets
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
)
from transformers.trainer_utils import SaveStrategy
from trl import SFTTrainer, get_peft_config, get_quantization_config

from amidmath.integrations import run_folder
from amidmath.integrations.amid_trainer import AMiDTrainer
from amidmath.integrations.distill_arguments import AMiDConfig, Arguments, parse_arguments
from amidmath.integrations.distill_console import (
    ProgressBar,
    describe,
    judge,
    print_header,
    print_table,
    warnings_about,
)
from amidmath.integrations.distill_data import load_splits
from amidmath.integrations.distill_errors import InputError
from amidmath.integrations.distill_models import (
    check_tokenizers,
    freeze_embeddings,
    load_model,
    load_tokenizer,
)

TEACHER_FLAG = "--teacher_model_name_or_path"

# Preparing fewer rows than this takes seconds, and a dozen bars would hide the header.
ROWS_WITHOUT_BARS = 20_000


def distill(arguments: Arguments, console: Console) -> Path:
    """Run a whole distillation; gives the run folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
    """
    config, folder = arguments.config, arguments.output_dir
    run_folder.claim(folder, replace=config.overwrite_output_dir or resuming(config))
    train_rows, test_rows = load_splits(arguments.script, config)
    if len(train_rows) < ROWS_WITHOUT_BARS:
        datasets.disable_progress_bars()
    tokenizer = load_tokenizer("--model_name_or_path", arguments.student)
    check_tokenizers(tokenizer, load_tokenizer(TEACHER_FLAG, arguments.teacher))
    trainer = AMiDTrainer(
        load_student(arguments),
        load_model(TEACHER_FLAG, arguments.teacher, dtype=config.teacher_dtype),
        config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(arguments.model),
    )
    print_header(console, trainer, arguments)
    held_out = held_out_batches(trainer, arguments.script.max_eval_samples)
    before = judge(console, trainer.teacher, held_out, {"student before": trainer.student})
    for warning in warnings_about(before["teacher"], before["student before"]):
        console.print(f"[bold yellow]Warning:[/bold yellow] {warning}")

    run_folder.open_folder(folder, arguments, keep_metrics=resuming(config))
    train(trainer, "distilling", folder, run_folder.STUDENT)
    trained = {"student after": trainer.student}
    if arguments.script.baseline:
        baseline = cross_entropy_trainer(trainer, arguments)
        train(baseline, "cross-entropy baseline", folder, "baseline")
        trained["cross-entropy only"] = cast("PreTrainedModel", baseline.model)
    results = before | judge(console, trainer.teacher, held_out, trained)

    run_folder.save_student(folder, trainer.student, tokenizer)
    run_folder.write_results(folder, results, describe(config.loss()))
    count = results["teacher"].tokens
    print_table(console, results, f"on {count:,} held-out tokens; KL in nats a token")
    console.print(f"Student, metrics and curves are in {folder}/", highlight=False)
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
    return folder


def resuming(config: AMiDConfig) -> bool:
    """Whether the run goes on from a checkpoint."""
    return config.resume_from_checkpoint not in (None, "", "False", "false", False)


def load_student(arguments: Arguments) -> PreTrainedModel:
    """The student as the arguments describe it."""
    config, model = arguments.config, arguments.model
    if isinstance(config.model_init_kwargs, str):
        raise InputError(f"--model_init_kwargs must be JSON, got {config.model_init_kwargs!r}")
    student = load_model(
        "--model_name_or_path",
        arguments.student,
        revision=model.model_revision,
        attn_implementation=model.attn_implementation,
        dtype=model.dtype or "float32",
        quantization_config=get_quantization_config(model),
        **(config.model_init_kwargs or {}),
    )
    if config.freeze_embeddings:
        freeze_embeddings(student)
    return student


def cross_entropy_trainer(distilled: AMiDTrainer, arguments: Arguments) -> SFTTrainer:
    """A trainer that differs in the loss alone: same start, rows, order, steps and optimiser."""
    config = copy.copy(arguments.config)
    config.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are prepared already
    config.save_strategy = SaveStrategy.NO
    config.resume_from_checkpoint = None
    return SFTTrainer(
        load_student(arguments),
        config,
        train_dataset=distilled.train_rows,
        processing_class=cast("PreTrainedTokenizerBase", distilled.processing_class),
        peft_config=get_peft_config(arguments.model),
    )


def train(trainer: SFTTrainer, title: str, folder: Path, name: str) -> None:
    """Train with our progress bar and metrics file in place of the default printing."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressBar(title))
    trainer.add_callback(run_folder.MetricsLog(folder, name))
    distilling = isinstance(trainer, AMiDTrainer)
    trainer.train(
        resume_from_checkpoint=trainer.args.resume_from_checkpoint if distilling else None
    )


def held_out_batches(trainer: AMiDTrainer, limit: int | None) -> "DataLoader[Any]":
    """The held-out rows in batches, the first ``limit`` of them."""
    rows = trainer.eval_rows
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    return trainer.get_eval_dataloader(cast("Any", rows))


def main(argv: list[str] | None = None) -> int:
    """Run from the command line; 0 when complete, 2 when something given does not fit."""
    try:
        distill(parse_arguments(argv), Console())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
