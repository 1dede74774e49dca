"""Reports of an evaluation: its header, its table, and the files that it leaves."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from amidmath.integrations.common.cli.facts import print_facts
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.evaluation.arguments import Arguments
from amidmath.integrations.common.evaluation.quality import Quality
from amidmath.integrations.common.storage.whole_files import staged_file, write_json
from amidmath.integrations.common.tasks.answers import Score, TaskResult
from amidmath.integrations.common.tasks.prompts import HeldOut, Prompts
from amidmath.integrations.common.tasks.reading import TaskRows

RESULTS = "results.json"
PREDICTIONS = "predictions.jsonl"
STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Outcome:
    """The results of an evaluation.

    Args:
        figures: on held-out text, by model.
        answers: with their scores, of each model that answered.
    """

    figures: Mapping[str, Quality]
    answers: Mapping[str, TaskResult]


def claim(arguments: Arguments) -> None:
    """Make sure that the results can be written; nothing is changed yet.

    Raises:
        InputError: they cannot.
    """
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


def print_header(
    console: Console,
    arguments: Arguments,
    rows: TaskRows,
    prompts: Prompts,
    texts: HeldOut,
    device: str,
) -> None:
    """Print what is about to happen, a line a fact.

    Args:
        console: where.
        arguments: of the evaluation.
        rows: what is evaluated on.
        prompts: of the rows.
        texts: of the rows.
        device: that computes, and in which type.
    """
    given, decoding = arguments.models, arguments.decoding()
    way = (
        f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}, seeds "
        f"{', '.join(map(str, decoding.seeds))}"
        if decoding.temperature > 0.0
        else "greedy"
    )
    cut = {
        f"prompts cut to {arguments.data.max_prompt_length} tokens": prompts.cut,
        "references cut for KL and perplexity": texts.cut,
    }
    facts = {
        "task": f"{arguments.task.name}: {arguments.task.about}",
        "data": f"{arguments.data.dataset_name}: {rows.describe()}"
        + "".join(f", {count:,} {what}" for what, count in cut.items() if count),
        "student": str(given.model_name_or_path),
        "teacher": str(given.teacher_model_name_or_path),
        "answers": f"{way}, up to {decoding.max_new_tokens} tokens",
        "device": device,
    }
    if not given.teacher_model_name_or_path:
        del facts["teacher"]
    if not arguments.task.metrics:
        del facts["answers"]
    print_facts(console, facts)


def print_table(console: Console, outcome: Outcome) -> None:
    """A column a model: figures on the references, then scores of the answers."""
    figures, answers = outcome.figures, outcome.answers
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


def write(
    arguments: Arguments,
    rows: TaskRows,
    prompts: Prompts,
    texts: HeldOut,
    outcome: Outcome,
    libraries: Iterable[str],
) -> None:
    """Write results.json and predictions.jsonl.

    Args:
        arguments: of the evaluation.
        rows: that it was on.
        prompts: of the rows.
        texts: of the rows.
        outcome: what came of it.
        libraries: whose versions are said.
    """
    arguments.folder.mkdir(parents=True, exist_ok=True)
    decoding = arguments.decoding()
    _write_predictions(arguments.folder / PREDICTIONS, rows, decoding.seeds, outcome.answers)
    content = {
        "arguments": {
            name: value
            for group in (arguments.models, arguments.data, arguments.generation)
            for name, value in asdict(group).items()
        },
        "decoding": asdict(decoding) if outcome.answers else None,
        "rows": {
            "evaluated": len(rows.rows),
            "in_the_file": rows.total,
            "left_out_short": rows.short,
            "left_out_beyond": rows.beyond,
            "prompts_cut": prompts.cut,
            "references_cut": texts.cut,
        },
        "results": {
            role: _as_json(quality, outcome.answers.get(role), TEACHER in outcome.figures)
            for role, quality in outcome.figures.items()
        },
        "versions": {name: version(name) for name in libraries},
    }
    write_json(arguments.folder / RESULTS, content)


def _write_predictions(
    path: Path, rows: TaskRows, seeds: Iterable[int], answers: Mapping[str, TaskResult]
) -> None:
    """One line an answer."""
    with staged_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for role, result in answers.items():
            for seed, texts in zip(seeds, result.answers, strict=True):
                for row, text in zip(rows.rows, texts, strict=True):
                    line = {"model": role, "seed": seed, "row": row.number, "prediction": text}
                    line |= {"prompt": row.prompt, "references": row.references}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")


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


def _cell(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.2f}" + ("" if score.std is None else f" ± {score.std:.2f}")
