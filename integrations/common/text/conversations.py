"""Conversations in one form, "role" and a "content" that is text, whatever a dataset calls them."""

from collections.abc import Collection, Mapping
from typing import Any

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.errors import UnfitRow

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that templates and their users agree upon; a template may name others."""

ALIASES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "chatgpt", "chatbot", "ai", "llm"), "assistant"),
    **dict.fromkeys(
        ("observation", "observations", "function_response", "tool_response", "function"), "tool"
    ),
}
"""Other names of roles, of ShareGPT and its kin."""

_FORMS = (("role", "content"), ("from", "value"))
_KEYS = frozenset(key for form in _FORMS for key in form)
_TEXT_PARTS = (None, "text", "input_text", "output_text")


def conversation(value: Any, column: str) -> list[Message]:
    """The messages of a row, each with "role", "content" and what else it has that is not null.

    Args:
        value: a list of messages with "role" and "content", or "from" and "value". A content may
            be a list of parts: those of text are put together, with nothing between them.
        column: where it stands, for messages.

    Returns:
        Messages whose content is a text; or None, beside "tool_calls". Roles are as they were.

    Raises:
        UnfitRow: it is no such list, or has a part that is no text.
    """
    if not isinstance(value, list) or not value:
        raise UnfitRow(
            f"has {column!r} = {shortened(value)}, which is no list of messages with 'role' and "
            "'content'"
        )
    return [_message(f"{column}[{number}]", turn) for number, turn in enumerate(value)]


def is_conversation(value: Any) -> bool:
    """Whether a value is meant to be messages, and no text."""
    return isinstance(value, list)


def usual_role(name: str) -> str:
    """A role by its usual name, if it is another name of one of ``ROLES``."""
    plain = name.strip().lower()
    return ALIASES.get(plain, plain)


def role(name: str, known: Collection[str] = ROLES) -> str:
    """A role by the name that a template knows.

    Args:
        name: as a dataset has it: one of ``ROLES`` or ``ALIASES``, or one that the template names.
        known: the roles that the template names, beside ``ROLES``.

    Raises:
        UnfitRow: nobody knows it.
    """
    plain, usual = name.strip().lower(), usual_role(name)
    for found in (name, plain):
        if found in known and usual not in known:
            return found
    if usual in ROLES:
        return usual
    if name in known:
        return name
    raise UnfitRow(
        f"has a message of role {name!r}, which the chat template does not name; known are "
        f"{', '.join(ROLES)}, and for them {', '.join(ALIASES)}"
    )


def _message(place: str, turn: Any) -> Message:
    form = next(
        (keys for keys in _FORMS if isinstance(turn, Mapping) and turn.get(keys[0]) is not None),
        None,
    )
    if form is None:
        raise UnfitRow(
            f"has {place} = {shortened(turn)}, which is no message with 'role' and 'content'"
        )
    who, what = (turn.get(key) for key in form)
    if not isinstance(who, str):
        raise UnfitRow(f"has in {place} the role {shortened(who)}, which is no text")
    others = {k: v for k, v in turn.items() if k not in _KEYS and v is not None}
    if what is None and others.get("tool_calls"):
        return {"role": who, "content": None, **others}
    return {"role": who, "content": _text(place, what), **others}


def _text(place: str, content: Any) -> str:
    """A content as text: itself, or the texts of its parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "".join(_part(place, part) for part in content)
    raise UnfitRow(
        f"has in {place} the content {shortened(content)}, which is no text, and no list of parts "
        "of type 'text'"
    )


def _part(place: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    if isinstance(text, str) and part.get("type") in _TEXT_PARTS:
        return text
    raise UnfitRow(
        f"has in {place} the part {shortened(part)}, which is no text; expected "
        '{"type": "text", "text": "…"}'
    )
