"""Rows of a task: a prompt with its reference answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amidmath.integrations.common.text.conversations import (
    Message,
)

Prompt = str | list[Message]


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
    """The languages of a translation task.

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


def as_text(prompt: Prompt) -> str:
    """A prompt without roles: the contents of its messages, a blank line between them."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] or "" for message in prompt)


def as_messages(prompt: Prompt) -> list[Message]:
    """A prompt as messages: a text is what the user says."""
    return user_message(prompt) if isinstance(prompt, str) else prompt


def user_message(content: str) -> list[Message]:
    """A conversation of one message, the user's."""
    return [{"role": "user", "content": content}]
