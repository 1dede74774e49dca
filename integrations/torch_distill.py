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
from typing import Any

import datasets
from rich.console import Console
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback
from trl import ModelConfig, SFTTrainer, get_peft_config, get_quantization_config

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

# Preparing fewer rows than this takes seconds, and a dozen bars would hide the header.
ROWS_WITHOUT_BARS = 20_000


def distill(arguments: Arguments, console: Console) -> Path:
    """Run a whole distillation; gives the run folder.

    Raises:
        InputError: something given does not fit; nothing has been written then.
    """
    script, config, model_config = arguments
    folder = Path(config.output_dir)
    run_folder.claim(folder, replace=config.overwrite_output_dir or resuming(config))
    train_rows, test_rows = load_splits(script, config)
    if len(train_rows) < ROWS_WITHOUT_BARS:
        datasets.disable_progress_bars()
    tokenizer = load_tokenizer("--model_name_or_path", model_config.model_name_or_path)
    teacher_name = str(config.teacher_model_name_or_path)
    flag = "--teacher_model_name_or_path"
    check_tokenizers(tokenizer, load_tokenizer(flag, teacher_name))
    teacher = load_model(flag, teacher_name, dtype=config.teacher_dtype)
    trainer = AMiDTrainer(
        load_student(config, model_config),
        teacher,
        config,
        train_dataset=train_rows,
        eval_dataset=test_rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_config),
    )
    print_header(console, trainer, arguments)
    held_out = held_out_batches(trainer, script.max_eval_samples)
    before = judge(console, trainer.teacher, held_out, {"student before": trainer.model})
    for warning in warnings_about(before["teacher"], before["student before"]):
        console.print(f"[bold yellow]Warning:[/bold yellow] {warning}")

    run_folder.open_folder(folder, arguments, keep_metrics=resuming(config))
    train(trainer, "distilling", folder, run_folder.STUDENT)
    trained = {"student after": trainer.model}
    if script.baseline:
        baseline = cross_entropy_trainer(trainer, model_config)
        train(baseline, "cross-entropy baseline", folder, "baseline")
        trained["cross-entropy only"] = baseline.model
    results = before | judge(console, trainer.teacher, held_out, trained)

    run_folder.save_student(folder, trainer.model, tokenizer)
    run_folder.write_results(folder, results, describe(config.loss()))
    count = results["teacher"].tokens
    print_table(console, results, f"on {count:,} held-out tokens; KL in nats a token")
    console.print(f"Student, metrics and curves are in {folder}/", highlight=False)
    if config.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    return folder


def resuming(config: AMiDConfig) -> bool:
    """Whether the run goes on from a checkpoint."""
    return config.resume_from_checkpoint not in (None, "", "False", "false", False)


def load_student(config: AMiDConfig, model_config: ModelConfig) -> PreTrainedModel:
    """The student as the arguments describe it."""
    student = load_model(
        "--model_name_or_path",
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        attn_implementation=model_config.attn_implementation,
        dtype=model_config.dtype or "float32",
        quantization_config=get_quantization_config(model_config),
        **(config.model_init_kwargs or {}),
    )
    if config.freeze_embeddings:
        freeze_embeddings(student)
    return student


def cross_entropy_trainer(distilled: AMiDTrainer, model_config: ModelConfig) -> SFTTrainer:
    """A trainer that differs in the loss alone: same start, rows, order, steps and optimiser."""
    config = copy.copy(distilled.args)
    config.dataset_kwargs = {"skip_prepare_dataset": True}  # the rows are prepared already
    config.save_strategy = "no"
    return SFTTrainer(
        load_student(config, model_config),
        config,
        train_dataset=distilled.train_dataset,
        processing_class=distilled.processing_class,
        peft_config=get_peft_config(model_config),
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
    rows = trainer.eval_dataset
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    return trainer.get_eval_dataloader(rows)


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
