"""Evaluate a student, beside its teacher if there is one, on held-out text and on a task.

    python integrations/torch_eval.py --model_name_or_path STUDENT \
        --teacher_model_name_or_path TEACHER --task dolly --dataset_name dolly/valid.jsonl \
        --output_dir runs/mine-dolly

Prints a table and writes results.json and predictions.jsonl. ``--help`` lists all arguments.
"""

import json
import math
import os
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from amidmath.integrations.shared.command_line import STUDENT_FLAG, TEACHER_FLAG, exit_status
from amidmath.integrations.shared.errors import InputError, while_preparing
from amidmath.integrations.shared.quality import Quality
from amidmath.integrations.shared.tasks import TaskRows, read_rows
from amidmath.integrations.shared.tokenizers import load_tokenizer
from amidmath.integrations.shared.vocabularies import compare_vocabularies
from amidmath.integrations.shared.whole_files import staged_file, write_json
from amidmath.integrations.torch_loop.eval_arguments import Arguments, parse_arguments
from amidmath.integrations.torch_loop.evaluation import evaluate
from amidmath.integrations.torch_loop.generation import check_lengths
from amidmath.integrations.torch_loop.models import context_of, load_model
from amidmath.integrations.torch_loop.task_evaluation import (
    HeldOut,
    Prompts,
    Score,
    TaskResult,
    encode_prompts,
    evaluate_task,
    held_out,
)

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Prepared:
    """Everything read and loaded, and found to fit together."""

    rows: TaskRows
    tokenizer: PreTrainedTokenizerBase
    models: dict[str, PreTrainedModel]
    prompts: Prompts
    held_out: HeldOut


def run(arguments: Arguments, console: Console) -> Path:
    """Run a whole evaluation; gives the folder of the results.

    Raises:
        InputError: something given does not fit; nothing has been written then.
    """
    with while_preparing():
        _claim(arguments)
        console.print("Reading the data and loading the models")
        prepared = prepare(arguments)
    _print_header(console, arguments, prepared)
    figures = _held_out_figures(prepared)
    answers = _answer(arguments, prepared)
    _write(arguments, prepared, figures, answers)
    _print_table(console, figures, answers)
    console.print(f"Results and predictions are in {arguments.folder}/", highlight=False)
    return arguments.folder


def prepare(arguments: Arguments) -> Prepared:
    """Read the rows, load the models, and find out whether they fit together."""
    given, data = arguments.models, arguments.data
    transformers_logging.disable_progress_bar()
    rows = read_rows(
        str(data.dataset_name),
        arguments.task,
        languages=arguments.languages(),
        min_reference_words=data.min_reference_words,
        limit=data.max_eval_samples,
        split=data.dataset_split,
        config_name=data.dataset_config,
    )
    names = {STUDENT: (STUDENT_FLAG, given.model_name_or_path, given.model_revision)}
    if given.teacher_model_name_or_path:
        teacher = (TEACHER_FLAG, given.teacher_model_name_or_path, given.teacher_model_revision)
        names[TEACHER] = teacher
    tokenizers = [load_tokenizer(flag, str(name), revision=r) for flag, name, r in names.values()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = given.dtype or ("float32" if device.type == "cpu" else "auto")
    models = {
        role: load_model(flag, str(name), revision=revision, dtype=dtype)
        for role, (flag, name, revision) in names.items()
    }
    if TEACHER in models:
        ours, theirs = (tokenizer.get_vocab() for tokenizer in tokenizers)
        student_size, teacher_size = (
            models[role].config.get_text_config().vocab_size for role in (STUDENT, TEACHER)
        )
        compare_vocabularies(ours, theirs, student_size, teacher_size, given.vocab)
    prompts = encode_prompts(
        tokenizers[0], rows.rows, style=data.prompt_style, max_length=data.max_prompt_length
    )
    texts = held_out(
        tokenizers[0],
        rows.rows,
        prompts,
        batch_size=arguments.generation.batch_size,
        max_length=_max_length(data.max_length, models),
    )
    if arguments.task.metrics:
        for role in _who_answers(arguments):
            lengths = [len(prompt) for prompt in prompts.ids]
            numbers = [row.number for row in rows.rows]
            check_lengths(models[role], lengths, arguments.decoding().max_new_tokens, numbers)
    for model in models.values():
        cast("torch.nn.Module", model).to(device)
    return Prepared(rows, tokenizers[0], models, prompts, texts)


def _max_length(given: int | None, models: dict[str, PreTrainedModel]) -> int | None:
    """The longest sequence to judge: as given, or else the shortest context."""
    contexts = {role: context for role, model in models.items() if (context := context_of(model))}
    for role, context in contexts.items():
        if given is not None and given > context:
            raise InputError(
                f"--max_length {given} is longer than the {role}'s context of {context} tokens: "
                f"set --max_length {context} or less"
            )
    return min(contexts.values(), default=None) if given is None else given


def _who_answers(arguments: Arguments) -> list[str]:
    """Whose answers are generated, the teacher's first: the student's are compared with them."""
    if not arguments.task.metrics:
        return []
    return [TEACHER, STUDENT] if arguments.generation.generate_with_teacher else [STUDENT]


def _held_out_figures(prepared: Prepared) -> dict[str, Quality]:
    """KL, agreement and perplexity; of a student without teacher, the perplexity is all."""
    bar = tqdm(prepared.held_out.batches, desc="held-out text", leave=False, dynamic_ncols=True)
    student = prepared.models[STUDENT]
    teacher = prepared.models.get(TEACHER)
    if teacher is None:
        return {STUDENT: evaluate({}, student, bar, student.device)["teacher"]}
    figures = evaluate({STUDENT: student}, teacher, bar, student.device)
    return {role: figures[role] for role in (STUDENT, TEACHER)}


def _answer(arguments: Arguments, prepared: Prepared) -> dict[str, TaskResult]:
    """The answers of those that are to answer, and their scores."""
    decoding, results = arguments.decoding(), dict[str, TaskResult]()
    for role in _who_answers(arguments):
        total = len(prepared.rows.rows) * len(decoding.seeds)
        title = f"answers of the {role}"
        with tqdm(total=total, desc=title, unit="row", leave=False, dynamic_ncols=True) as bar:
            results[role] = evaluate_task(
                prepared.models[role],
                prepared.tokenizer,
                prepared.rows.rows,
                arguments.task,
                decoding=decoding,
                prompts=prepared.prompts,
                teacher_answers=results[TEACHER].answers if TEACHER in results else None,
                on_batch=bar.update,
            )
    return results


# The folder and what is in it.


def _claim(arguments: Arguments) -> None:
    """Make sure that the results can be written; nothing is changed yet."""
    folder = arguments.folder
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"--output_dir: cannot write {folder}: {nearest} is no writable folder")
    if (folder / "run.json").exists():
        raise InputError(
            f"--output_dir: {folder} holds a training run, whose {RESULTS} would be replaced; "
            f"choose another folder, such as {folder / 'eval'}"
        )
    if (folder / RESULTS).exists() and not arguments.output.overwrite_output_dir:
        raise InputError(
            f"--output_dir: {folder} holds an earlier evaluation; choose another folder, or "
            "replace it with --overwrite_output_dir"
        )


def _write(
    arguments: Arguments,
    prepared: Prepared,
    figures: dict[str, Quality],
    answers: dict[str, TaskResult],
) -> None:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    decoding, rows = arguments.decoding(), prepared.rows.rows
    with (
        staged_file(arguments.folder / PREDICTIONS) as partial,
        partial.open("w", encoding="utf-8") as file,
    ):
        for role, result in answers.items():
            for seed, texts in zip(decoding.seeds, result.answers, strict=True):
                for row, text in zip(rows, texts, strict=True):
                    line = {"model": role, "seed": seed, "row": row.number, "prediction": text}
                    line |= {"prompt": row.prompt, "references": row.references}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    has_teacher = TEACHER in prepared.models
    content = {
        "arguments": {
            name: value
            for group in (arguments.models, arguments.data, arguments.generation)
            for name, value in asdict(group).items()
        },
        "decoding": asdict(decoding) if answers else None,
        "rows": {
            "evaluated": len(rows),
            "in_the_file": prepared.rows.total,
            "left_out_short": prepared.rows.short,
            "left_out_beyond": prepared.rows.beyond,
            "prompts_cut": prepared.prompts.cut,
            "references_cut": prepared.held_out.cut,
        },
        "results": {
            role: _as_json(quality, answers.get(role), has_teacher)
            for role, quality in figures.items()
        },
        "versions": {
            name: version(name)
            for name in ("amidmath", "torch", "transformers", "rouge-score", "sacrebleu")
        },
    }
    write_json(arguments.folder / RESULTS, content)


def _as_json(quality: Quality, result: TaskResult | None, has_teacher: bool) -> dict[str, Any]:
    figures: dict[str, Any] = asdict(quality)
    if not has_teacher:
        figures |= {"kl": None, "agreement": None}
    for name, value in figures.items():  # JSON has no infinity
        if isinstance(value, float) and not math.isfinite(value):
            figures[name] = str(value)
    if result is not None:
        figures["scores"] = {name: asdict(score) for name, score in result.scores.items()}
        figures["unfinished"] = result.unfinished
    return figures


# What a person sees.


def _print_header(console: Console, arguments: Arguments, prepared: Prepared) -> None:
    given, decoding = arguments.models, arguments.decoding()
    way = (
        f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}, seeds "
        f"{', '.join(map(str, decoding.seeds))}"
        if decoding.temperature > 0.0
        else "greedy"
    )
    cut = {
        f"prompts cut to {arguments.data.max_prompt_length} tokens": prepared.prompts.cut,
        "references cut for KL and perplexity": prepared.held_out.cut,
    }
    facts = {
        "task": f"{arguments.task.name}: {arguments.task.about}",
        "data": f"{arguments.data.dataset_name}: {prepared.rows.describe()}"
        + "".join(f", {count:,} {what}" for what, count in cut.items() if count),
        "student": str(given.model_name_or_path),
        "teacher": str(given.teacher_model_name_or_path),
        "answers": f"{way}, up to {decoding.max_new_tokens} tokens",
        "device": f"{prepared.models[STUDENT].device.type}, {prepared.models[STUDENT].dtype}",
    }
    if TEACHER not in prepared.models:
        del facts["teacher"]
    if not arguments.task.metrics:
        del facts["answers"]
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"[bold]{name:>{width}}[/bold]  {value}", highlight=False, soft_wrap=True)
    console.print()


def _print_table(
    console: Console, figures: dict[str, Quality], answers: dict[str, TaskResult]
) -> None:
    """A column a model: figures on the references, then scores of the answers."""
    judged = figures.values()
    lines: dict[str, list[str]] = {}
    if TEACHER in figures:
        lines["KL to teacher (nats a token)"] = [f"{quality.kl:.4f}" for quality in judged]
        lines["top-1 agreement"] = [f"{quality.agreement:.4f}" for quality in judged]
    lines["perplexity"] = [f"{quality.perplexity:,.2f}" for quality in judged]
    for name in answers[STUDENT].scores if answers else ():
        scores = [answers[role].scores.get(name) if role in answers else None for role in figures]
        lines[f"{name} (%)"] = [_cell(score) for score in scores]
    if answers:
        lines["answers without an end (%)"] = [
            f"{100.0 * answers[role].unfinished:.1f}" if role in answers else "" for role in figures
        ]
    table = Table(
        caption=f"the first on {figures[STUDENT].tokens:,} tokens of references"
        + ("; ± is over seeds" if answers and answers[STUDENT].answers[1:] else ""),
        caption_justify="left",
    )
    table.add_column("")
    for role in figures:
        table.add_column(role, justify="right", no_wrap=True)
    for name, cells in lines.items():
        table.add_row(name, *cells)
    console.print(table)


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ± {score.std:.2f}")


def main(argv: list[str] | None = None) -> int:
    """Run from the command line.

    Returns:
        0 when the results are written, 2 when something given does not fit, 130 when interrupted.
    """
    return exit_status(lambda: run(parse_arguments(argv), Console()), "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
