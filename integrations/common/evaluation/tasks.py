"""Evaluation sets in the file formats they are published in: prompts with reference answers.

``TASKS`` has one entry a task; a new task is a new entry. docs/evaluation.md says where each format
comes from and what of it was checked against its source.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.data.record_files import READERS, Record, UnreadableFile, records
from amidmath.integrations.common.errors import InputError, UnfitRow
from amidmath.integrations.common.evaluation.metrics import marked_number
from amidmath.integrations.common.text.conversations import (
    Message,
    conversation,
    is_conversation,
    usual_role,
)
from amidmath.integrations.common.text.written_chats import options_of

Prompt = str | list[Message]

INSTRUCTION_ONLY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
INSTRUCTION_AND_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Row:
    """One prompt and what may answer it.

    Args:
        prompt: text to go on from, or messages for a chat template.
        references: acceptable answers, at least one; the first is the one perplexity is taken of.
        number: which row of its file it is, from 0.
        options: what a chat template is given beside the messages, "tools" for one.
    """

    prompt: Prompt
    references: tuple[str, ...]
    number: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Languages:
    """What a translation task translates.

    Args:
        source: the name of the source language in the prompt.
        target: the name of the target language.
        source_column: key or column of the source text; the name if not given.
        target_column: the same for the target.
    """

    source: str = "Assamese"
    target: str = "English"
    source_column: str | None = None
    target_column: str | None = None


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


@dataclass(frozen=True)
class TaskRows:
    """The rows of a file and how many of it they are.

    Args:
        rows: those to evaluate.
        total: how many rows the file has.
        short: how many were left out because every reference is shorter than asked for.
        beyond: how many were left out beyond the largest number asked for.
    """

    rows: list[Row] = field(repr=False)
    total: int
    short: int = 0
    beyond: int = 0

    def describe(self) -> str:
        """The counts in words."""
        left_out = {
            "with shorter references than --min_reference_words": self.short,
            "beyond --max_eval_samples": self.beyond,
        }
        notes = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
        tail = f" (left out: {'; '.join(notes)})" if notes else ""
        return f"{len(self.rows):,} of {self.total:,} rows{tail}"


def read_rows(
    name: str,
    task: Task,
    *,
    languages: Languages | None = None,
    min_reference_words: int = 0,
    limit: int | None = None,
    split: str = "test",
    config_name: str | None = None,
    flag: str = "--dataset_name",
) -> TaskRows:
    """The rows of an evaluation set.

    Args:
        name: a .json, .jsonl, .csv, .tsv or .txt file; else a folder, a .parquet file or a hub
            name, which are read with ``datasets``.
        task: its format.
        languages: for translation.
        min_reference_words: keep only rows with a reference of at least so many words.
        limit: keep the first so many rows.
        split: of a dataset that has several.
        config_name: of a dataset on the hub.
        flag: the argument that named the set, for messages.

    Raises:
        InputError: it cannot be read, has no rows, or a row lacks something; the message names
            the file, the row, counted from 0, and what would be right.
    """
    records = _records(flag, name, split, config_name)
    rows: list[Row] = []
    for number, record in enumerate(records):
        try:
            row = task.convert(record, languages or Languages())
            _check(row)
        except UnfitRow as error:
            raise InputError(
                f"{flag}: {name}: row {number} {error}; task {task.name} expects {task.expects}"
            ) from None
        rows.append(replace(row, number=number))
    if not rows:
        raise InputError(f"{flag}: {name} has no rows")
    long = [row for row in rows if max(map(_words, row.references)) >= min_reference_words]
    kept = long if limit is None else long[:limit]
    if not kept:
        raise InputError(
            f"{flag}: none of the {len(rows)} rows of {name} has a reference of "
            f"{min_reference_words} words (--min_reference_words)"
        )
    return TaskRows(kept, len(rows), len(rows) - len(long), len(long) - len(kept))


def as_text(prompt: Prompt) -> str:
    """A prompt without roles: the contents of its messages, a blank line between them."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] or "" for message in prompt)


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as messages: a text is what the user says."""
    return _user(prompt) if isinstance(prompt, str) else prompt


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first of some strings."""
    ends = [at for at in (text.find(word) for word in stop) if at >= 0]
    return text[: min(ends)] if ends else text


def _check(row: Row) -> None:
    empty = [i for i, reference in enumerate(row.references) if not reference.strip()]
    if not row.references:
        raise UnfitRow("has an empty list of references")
    if empty:
        raise UnfitRow(f"has an empty reference (number {empty[0]})")
    if not isinstance(row.prompt, str) and not row.prompt:
        raise UnfitRow("has a prompt without messages")


def _words(text: str) -> int:
    return len(text.split())


# What the tasks take from a record.


def _text(record: Record, name: str) -> str:
    if name not in record:
        raise UnfitRow(f"has no {name!r}, only {sorted(map(str, record))}")
    if not isinstance(record[name], str):
        raise UnfitRow(f"has {name!r} = {shortened(record[name])}, which is no text")
    return str(record[name])


def _texts(record: Record, name: str) -> tuple[str, ...]:
    """A text, or a list of texts."""
    value = record.get(name)
    if isinstance(value, list):
        if not all(isinstance(text, str) for text in value):
            raise UnfitRow(f"has {name!r} = {shortened(value)}, which is no list of texts")
        return tuple(value)
    return (_text(record, name),)


def _user(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def _instruction(record: Record, languages: Languages) -> Row:
    """MiniLLM's: the prompt if it is in the file, else the template filled in."""
    references = _texts(record, "output")
    if "prompt" in record:  # with line ends as "<n>" in some of the published files
        return Row(_text(record, "prompt").replace("<n>", "\n"), references)
    instruction = _text(record, "instruction")
    context = _text(record, "input") if record.get("input") is not None else ""
    if context:
        return Row(INSTRUCTION_AND_INPUT.format(instruction=instruction, input=context), references)
    return Row(INSTRUCTION_ONLY.format(instruction=instruction), references)


def _gsm8k(record: Record, languages: Languages) -> Row:
    if "instruction" in record:
        row = _instruction_response(record)
    else:
        prompt = f"Q: {_text(record, 'question')} \n\nA:"
        row = Row(_user(prompt), (_text(record, "answer"),))
    if marked_number(row.references[0]) is None:
        raise UnfitRow(f"has an answer without '#### NUMBER': {shortened(row.references[0])}")
    return row


def _translation(record: Record, languages: Languages) -> Row:
    if "instruction" in record:
        return _instruction_response(record)
    pair = record.get("translation", record)
    if not isinstance(pair, Mapping):
        raise UnfitRow(f"has 'translation' = {shortened(pair)}, which maps no languages to texts")
    source, target = (
        _text(pair, _column(pair, column or name))
        for column, name in (
            (languages.source_column, languages.source),
            (languages.target_column, languages.target),
        )
    )
    prompt = (
        f"Translate {languages.source} sentence into {languages.target}. This is the "
        f"{languages.source} sentence: {source} Here is the {languages.target} translation:"
    )
    return Row(_user(prompt), (target,))


def _column(pair: Record, name: str) -> str:
    """The column itself, or as FLORES names it."""
    found = next((key for key in (name, f"sentence_{name}") if key in pair), None)
    if found is None:
        raise UnfitRow(
            f"has no text under {name!r}, only under {sorted(map(str, pair))}: name its columns "
            "with --source_column and --target_column"
        )
    return found


def _summarization(record: Record, languages: Languages) -> Row:
    numbered = [name for name in ("summary1", "summary2", "summary3") if name in record]
    references = (
        tuple(_text(record, name) for name in numbered) if numbered else _texts(record, "summary")
    )
    return Row(_user(_text(record, "dialogue")), references)


def _instruction_response(record: Record) -> Row:
    """The files of speculative KD."""
    return Row(_user(_text(record, "instruction")), (_text(record, "response"),))


def _completion(record: Record, languages: Languages) -> Row:
    """TRL's: "prompt" and "completion", or "messages" of which the last is the answer."""
    name = next((c for c in ("messages", "conversations") if is_conversation(record.get(c))), None)
    given = {k: v for k, v in options_of(record).items() if v is not None}
    if name is not None:
        *prompt, last = conversation(record[name], name)
        return Row(prompt, (_answer(name, last),), options=given)
    if is_conversation(record.get("prompt")):
        completion = conversation(record.get("completion"), "completion")
        if len(completion) != 1:
            raise UnfitRow(f"has a completion of {len(completion)} messages, not of one")
        prompt = conversation(record["prompt"], "prompt")
        return Row(prompt, (_answer("completion", completion[0]),), options=given)
    return Row(_text(record, "prompt"), _texts(record, "completion"))


def _answer(name: str, message: Message) -> str:
    if usual_role(message["role"]) != "assistant":
        raise UnfitRow(f"has {name!r} that end with {message['role']!r}, no answer")
    if message["content"] is None:
        raise UnfitRow(f"has {name!r} that end with the call of a tool, no text")
    return str(message["content"])


def _plain_text(record: Record, languages: Languages) -> Row:
    return Row("", (_text(record, "text"),))


_INSTRUCTION_COLUMNS = (
    "'output' (a text or a list of texts) and 'prompt', or else 'instruction', with 'input' or not"
)


def _instruction_task(name: str, about: str) -> Task:
    return Task(
        name,
        about,
        _INSTRUCTION_COLUMNS,
        _instruction,
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
            _gsm8k,
            ("gsm8k_strict", "gsm8k_flexible"),
            max_new_tokens=512,
            stop=("\n\n",),
        ),
        Task(
            "translation",
            "one language into another",
            "'translation' (from language to text), or a column for each of the two languages, "
            "or 'instruction' and 'response'",
            _translation,
            ("bleu", "chrf"),
            stop=("\n",),
        ),
        Task(
            "summarization",
            "summaries of dialogues (DialogSum, SAMSum)",
            "'dialogue' and 'summary' (a text or a list of texts), or 'summary1' to 'summary3'",
            _summarization,
            ("rouge_l_unstemmed", "rouge_l"),
            max_new_tokens=128,
            stop=("\nuser", "\n"),
        ),
        Task(
            "completion",
            "TRL's training columns, with the answer as reference",
            "'prompt' and 'completion', or 'messages' that end with an answer",
            _completion,
            ("rouge_l", "exact_match"),
        ),
        Task("text", "plain text: nothing is generated", "'text'", _plain_text),
    )
}


def _records(flag: str, name: str, split: str, config_name: str | None) -> Iterable[Record]:
    path = Path(name)
    known = path.suffix.lower() in READERS
    if known and not path.exists():
        raise InputError(f"{flag}: no such file: {name}")
    if not known or not path.is_file():
        return _from_datasets(flag, name, split, config_name)
    try:
        return list(records(path))
    except (OSError, UnreadableFile) as error:
        raise InputError(f"{flag}: {name} cannot be read: {error}") from error


def _from_datasets(flag: str, name: str, split: str, config_name: str | None) -> Iterable[Record]:
    from amidmath.integrations.common.data.splits import read

    splits = read(flag, name, config_name)
    if split in splits:
        return cast("list[Record]", list(splits[split]))
    if len(splits) == 1:
        return cast("list[Record]", list(next(iter(splits.values()))))
    raise InputError(f"--dataset_split: no split {split!r}; {name} has {sorted(splits)}")
