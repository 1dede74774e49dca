"""Conversations as their chat template writes them, one row at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.errors import UnfitRow
from amidmath.integrations.common.text.chat_template import ChatTemplate
from amidmath.integrations.common.text.conversations import Message

FOR_TEMPLATES = ("tools", "chat_template_kwargs")
"""The columns that a chat template is given beside the messages."""


@dataclass
class WrittenChat:
    """A conversation as its template writes it.

    Args:
        prompt: what comes before the completion, "" where there is none.
        whole: all of it.
        ids: its tokens, where answers are told apart.
        answers: of each token, whether the assistant generates it; likewise.
        empty: nobody answers anything in it.
        deaf: it has tools, which are not written.
        refused: why it cannot be used.
    """

    prompt: str
    whole: str
    ids: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    empty: bool = False
    deaf: bool = False
    refused: str = ""


def written(
    template: ChatTemplate,
    parts: Sequence[Sequence[Message]],
    options: Mapping[str, Any],
    assistant: bool,
) -> WrittenChat:
    """A conversation as its template writes it.

    Args:
        template: the template.
        parts: the prompt's messages and the completion's, or all in one.
        options: what the template is given beside them.
        assistant: whether answers are told apart.

    Raises:
        UnfitRow: the template refuses it, or does not write all of it.
    """
    *prompts, last = (template.messages(part) for part in parts)
    messages = [turn for part in (*prompts, last) for turn in part]
    whole = template.write(messages, options, answer_follows=False)
    chat = WrittenChat("", whole)
    chat.deaf = not template.check_whole(messages, options, whole)
    if prompts:
        chat.prompt = template.write(prompts[0], options, answer_follows=True)
    if assistant:
        chat.ids, chat.answers = template.tokens(messages, options)
    answers = last if prompts else [turn for turn in last if turn["role"] == "assistant"]
    chat.empty = not any((t["content"] or "").strip() or t.get("tool_calls") for t in answers)
    if chat.empty:
        chat.answers = [0] * len(chat.answers)
    return chat


def options_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row that its chat template is given beside the messages.

    Raises:
        UnfitRow: tools in a text that is no JSON.
    """
    tools, more = (record.get(name) for name in FOR_TEMPLATES)
    # Rows of one table have all keys of all of them, those that they were not given as null.
    named = {name: value for name, value in (more or {}).items() if value is not None}
    return {"tools": _from_json(tools) if isinstance(tools, str) else tools, **named}


def _from_json(tools: str) -> Any:
    try:
        return json.loads(tools)
    except json.JSONDecodeError as error:
        raise UnfitRow(f"has tools {shortened(tools)}, which is no JSON: {error}") from error
