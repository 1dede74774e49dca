"""A tokenizer's chat template, held to writing all that it is given."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from amidmath.integrations.common.errors import UnfitRow, first_paragraph
from amidmath.integrations.common.text.conversations import Message, role

_QUOTED = re.compile(r"""'([\w-]+)'|"([\w-]+)\"""")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# What no dataset has, and no template takes for markup.
_MARK, _OTHER_MARK = "qz{}zq", "qy{}yq"


class ChatTemplate:
    """Writes conversations as a tokenizer's template does, and refuses what it would leave out.

    A template is free to pass over a role, a message or tools that it does not expect, and says
    nothing. So what it writes is compared with what it writes of other words in their place.

    Args:
        tokenizer: one of transformers', with a chat template.
        source: the template, in place of the tokenizer's.
    """

    def __init__(self, tokenizer: Any, source: str | None = None) -> None:
        self.tokenizer, self.source = tokenizer, source
        own = tokenizer.chat_template if source is None else source
        self._sources = tuple(own.values()) if isinstance(own, dict) else (own,) if own else ()
        self.names = {a or b for text in self._sources for a, b in _QUOTED.findall(text)}
        self._seen: dict[Any, tuple[str, bool]] = {}

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self._sources)

    @property
    def marks_answers(self) -> bool:
        """Whether it says what the assistant generates."""
        default = self._sources[:1]
        if self.source is None and isinstance(self.tokenizer.chat_template, dict):
            default = (self.tokenizer.chat_template.get("default") or "",)
        return any(_GENERATION.search(text) for text in default)

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether it writes contents only where they are lists of parts, as of models that see."""
        probe = [{"role": "user", "content": _MARK.format(0)}]

        def writes(messages: Sequence[Message]) -> bool:
            try:
                return _MARK.format(0) in str(self._rendered(messages, {}, tokenize=False))
            except Exception:  # a template may raise anything
                return False

        return not writes(probe) and writes(_in_parts(probe))

    def messages(self, conversation: Sequence[Message]) -> list[Message]:
        """The messages with roles as the template names them; raises UnfitRow on others."""
        return [{**turn, "role": role(turn["role"], self.names)} for turn in conversation]

    def write(
        self, messages: Sequence[Message], options: Mapping[str, Any], *, answer_follows: bool
    ) -> str:
        """The text of a conversation.

        Args:
            messages: as :meth:`messages` gives them.
            options: what else the template is given, "tools" for one.
            answer_follows: whether it ends with what begins an answer.

        Raises:
            UnfitRow: the template refuses it.
        """
        return str(
            self._apply(messages, options, tokenize=False, add_generation_prompt=answer_follows)
        )

    def tokens(
        self, messages: Sequence[Message], options: Mapping[str, Any]
    ) -> tuple[list[int], list[int]]:
        """The tokens of a conversation, and 1 for those that the assistant generates.

        Raises:
            UnfitRow: the template refuses it.
        """
        made = self._apply(
            messages, options, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return made["input_ids"], made["assistant_masks"]

    def check_whole(
        self,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        text: str,
        *,
        answer_follows: bool = False,
    ) -> bool:
        """Whether tools are written, if there are some; UnfitRow if a message is not written.

        What a template does with messages of the same roles is found out once: it hardly costs.

        Args:
            messages: of a row.
            options: likewise.
            text: what :meth:`write` made of it.
            answer_follows: as for it.
        """
        turns = tuple((turn["role"], *_kinds(turn)) for turn in messages)
        rest = sorted((name, repr(value)) for name, value in options.items() if name != "tools")
        kind = (turns, tuple(rest), bool(options.get("tools")), answer_follows)
        if kind not in self._seen:
            self._seen[kind] = self._look(messages, options, answer_follows)
        lost, tools_written = self._seen[kind]
        if lost:
            raise UnfitRow(lost)
        for number, turn in enumerate(messages):
            content = (turn["content"] or "").strip()
            if content and content not in text:
                changed = _with(messages, number, content=_MARK.format(number))
                if self.write(changed, options, answer_follows=answer_follows) == text:
                    raise UnfitRow(_unwritten(number, turn, "anything"))
        return tools_written

    def _look(
        self, messages: Sequence[Message], options: Mapping[str, Any], answer_follows: bool
    ) -> tuple[str, bool]:
        """Which message's text or calls are not written, as a reason; whether tools are."""

        def written(turns: Sequence[Message], given: Mapping[str, Any] = options) -> str | None:
            try:
                return self.write(turns, given, answer_follows=answer_follows)
            except UnfitRow:  # it wants other words than marks
                return None

        marked = [
            {**turn, "content": _MARK.format(n)} if (turn["content"] or "").strip() else turn
            for n, turn in enumerate(messages)
        ]
        whole = written(marked)
        if whole is None:
            return "", True
        for n, turn in enumerate(marked):
            if turn is not messages[n] and _MARK.format(n) not in whole:
                other = written(_with(marked, n, content=_OTHER_MARK.format(n)))
                if other == whole:
                    return _unwritten(n, turn, "anything"), True
            calls = _renamed(turn.get("tool_calls"), _OTHER_MARK.format(n))
            if calls is not None and written(_with(marked, n, tool_calls=calls)) == whole:
                return _unwritten(n, turn, "the tool calls"), True
        if not options.get("tools"):
            return "", True
        return "", written(marked, {**options, "tools": None}) != whole

    def _apply(self, messages: Sequence[Message], options: Mapping[str, Any], **how: Any) -> Any:
        try:
            given = _in_parts(messages) if self._wants_parts else messages
            return self._rendered(given, options, **how)
        except Exception as error:  # a template may raise anything
            raise UnfitRow(f"is refused by the chat template: {first_paragraph(error)}") from error

    def _rendered(self, messages: Sequence[Message], options: Mapping[str, Any], **how: Any) -> Any:
        return self.tokenizer.apply_chat_template(
            list(messages), chat_template=self.source, **how, **options
        )


def _in_parts(messages: Sequence[Message]) -> list[Message]:
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if turn["content"] is not None
        else turn
        for turn in messages
    ]


def _with(messages: Sequence[Message], number: int, **changes: Any) -> list[Message]:
    return [{**turn, **changes} if n == number else turn for n, turn in enumerate(messages)]


def _kinds(turn: Message) -> tuple[Any, ...]:
    """The parts of a message, beside its role, that may lead a template elsewhere."""
    content = turn["content"]
    return (None if content is None else bool(content.strip()), *sorted(turn))


def _renamed(calls: Any, name: str) -> Any:
    """The tool calls with another name of their functions; None where there are no such calls."""
    if not isinstance(calls, list) or not calls or not all(isinstance(c, Mapping) for c in calls):
        return None
    return [
        {**call, "function": {**call["function"], "name": name}}
        if isinstance(call.get("function"), Mapping)
        else {**call, "name": name}
        for call in calls
    ]


def _unwritten(number: int, turn: Message, what: str) -> str:
    return (
        f"has a message {number}, of role {turn['role']!r}, of which the chat template does not "
        f"write {what}"
    )
