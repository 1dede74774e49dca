"""Evaluation sets in the file formats they are published in: prompts with reference answers.

``TASKS`` has one entry a task; a new task is a new entry. docs/evaluation.md says where each format
comes from and what of it was checked against its source.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amidmath.integrations.common.data.record_files import Record
from amidmath.integrations.common.tasks.records import (
    completion_row,
    gsm8k_row,
    instruction_row,
    summary_row,
    text_row,
    translation_row,
)
from amidmath.integrations.common.tasks.rows import Languages, Row


@dataclass(frozen=True)
class Task:
    """An evaluation set's format and how it is scored.

    Args:
        name: as ``--task`` gives it.
        about: what it is, in one line.
        expects: the columns of a row, in words.
        convert: a record and the languages to a row; raises ``UnfitRow`` on what it cannot read.
        metrics: names in ``metrics.METRICS``; none where nothing is generated.
        max_new_tokens: length of an answer, as published.
        stop: an answer ends before the first of these, as published.
        temperature: of the sampling, as published; 0 is greedy.
        seeds: one evaluation each, as published.
    """

    name: str
    about: str
    expects: str
    convert: Callable[[Record, Languages], Row]
    metrics: tuple[str, ...] = ()
    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    seeds: tuple[int, ...] = (0,)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of some strings."""
    ends = [at for at in (text.find(word) for word in stop) if at >= 0]
    return text[: min(ends)] if ends else text


# What the tasks take from a record.


_INSTRUCTION_COLUMNS = (
    "'output' (a text or a list of texts) and 'prompt', or else 'instruction', with 'input' or not"
)


def _instruction_task(name: str, about: str) -> Task:
    return Task(
        name,
        about,
        _INSTRUCTION_COLUMNS,
        instruction_row,
        ("rouge_l", "exact_match"),
        temperature=1.0,
        seeds=(10, 20, 30, 40, 50),
    )


TASKS = {
    task.name: task
    for task in (
        _instruction_task("dolly", "instructions of databricks-dolly-15k"),
        _instruction_task("self_inst", "user-oriented instructions of Self-Instruct"),
        _instruction_task("vicuna", "the 80 questions of Vicuna's evaluation"),
        _instruction_task("sinst", "S-NI: Super-NaturalInstructions, as published in sinst/11_"),
        _instruction_task("uinst", "UnNI: Unnatural Instructions, as published in uinst/11_"),
        Task(
            "gsm8k",
            "grade-school mathematics",
            "'question' and 'answer' (which ends with '#### NUMBER'), or 'instruction' and "
            "'response'",
            gsm8k_row,
            ("gsm8k_strict", "gsm8k_flexible"),
            max_new_tokens=512,
            stop=("\n\n",),
        ),
        Task(
            "translation",
            "one language into another",
            "'translation' (from language to text), or a column for each of the two languages, "
            "or 'instruction' and 'response'",
            translation_row,
            ("bleu", "chrf"),
            stop=("\n",),
        ),
        Task(
            "summarization",
            "summaries of dialogues (DialogSum, SAMSum)",
            "'dialogue' and 'summary' (a text or a list of texts), or 'summary1' to 'summary3'",
            summary_row,
            ("rouge_l_unstemmed", "rouge_l"),
            max_new_tokens=128,
            stop=("\nuser", "\n"),
        ),
        Task(
            "completion",
            "TRL's training columns, with the answer as reference",
            "'prompt' and 'completion', or 'messages' that end with an answer",
            completion_row,
            ("rouge_l", "exact_match"),
        ),
        Task("text", "plain text: nothing is generated", "'text'", text_row),
    )
}
