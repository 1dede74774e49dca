"""Records of the files that tasks are published in, as rows."""

from collections.abc import Mapping

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.data.record_files import Record
from amidmath.integrations.common.errors import UnfitRow
from amidmath.integrations.common.tasks.metrics import marked_number
from amidmath.integrations.common.tasks.rows import Languages, Row, user_message
from amidmath.integrations.common.text.conversations import (
    Message,
    conversation,
    is_conversation,
    usual_role,
)
from amidmath.integrations.common.text.written_chats import options_of

INSTRUCTION_ONLY = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)

INSTRUCTION_AND_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


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


def instruction_row(record: Record, languages: Languages) -> Row:
    """MiniLLM's: the prompt if it is in the file, else the template filled in."""
    references = _texts(record, "output")
    if "prompt" in record:  # with line ends as "<n>" in some of the published files
        return Row(_text(record, "prompt").replace("<n>", "\n"), references)
    instruction = _text(record, "instruction")
    context = _text(record, "input") if record.get("input") is not None else ""
    if context:
        return Row(INSTRUCTION_AND_INPUT.format(instruction=instruction, input=context), references)
    return Row(INSTRUCTION_ONLY.format(instruction=instruction), references)


def gsm8k_row(record: Record, languages: Languages) -> Row:
    """GSM8K's question and answer, or an instruction and its response."""
    if "instruction" in record:
        row = _instruction_response(record)
    else:
        prompt = f"Q: {_text(record, 'question')} \n\nA:"
        row = Row(user_message(prompt), (_text(record, "answer"),))
    if marked_number(row.references[0]) is None:
        raise UnfitRow(f"has an answer without '#### NUMBER': {shortened(row.references[0])}")
    return row


def translation_row(record: Record, languages: Languages) -> Row:
    """A text in two languages, by their columns; or an instruction and its response."""
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
    return Row(user_message(prompt), (target,))


def _column(pair: Record, name: str) -> str:
    """The column itself, or as FLORES names it."""
    found = next((key for key in (name, f"sentence_{name}") if key in pair), None)
    if found is None:
        raise UnfitRow(
            f"has no text under {name!r}, only under {sorted(map(str, pair))}: name its columns "
            "with --source_column and --target_column"
        )
    return found


def summary_row(record: Record, languages: Languages) -> Row:
    """A dialogue and its summaries."""
    numbered = [name for name in ("summary1", "summary2", "summary3") if name in record]
    references = (
        tuple(_text(record, name) for name in numbered) if numbered else _texts(record, "summary")
    )
    return Row(user_message(_text(record, "dialogue")), references)


def _instruction_response(record: Record) -> Row:
    """The files of speculative KD."""
    return Row(user_message(_text(record, "instruction")), (_text(record, "response"),))


def completion_row(record: Record, languages: Languages) -> Row:
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


def text_row(record: Record, languages: Languages) -> Row:
    """Plain text, after no prompt."""
    return Row("", (_text(record, "text"),))
