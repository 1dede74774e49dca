"""Evaluation rows as token ids: prompts to answer, and references as held-out text."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.errors import InputError, UnfitRow
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.tasks.rows import Row, as_messages, as_text
from amidmath.integrations.common.text.chat_template import ChatTemplate

PROMPT_STYLES = ("published", "plain", "chat")
PROMPT_STYLE_HELP = (
    "published: as the task's source gives prompts, as text or as chat; plain: all as text; chat: "
    "all through the tokenizer's chat template."
)


@dataclass(frozen=True)
class Prompts:
    """The prompts of some rows as token ids.

    Args:
        ids: of each row.
        cut: how many prompts were cut to the longest length allowed.
        deaf: how many have tools that the chat template does not write.
    """

    ids: list[list[int]]
    cut: int = 0
    deaf: int = 0


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    style: str = "published",
    max_length: int | None = None,
    flag: str = "--prompt_style",
) -> Prompts:
    """The prompts as token ids.

    Args:
        tokenizer: the model's; with a template, if any prompt is a chat.
        rows: the rows.
        style: "published": texts as texts and messages as a chat; "plain": all as texts; "chat":
            all as a chat, a text being what the user says.
        max_length: longer prompts lose their end, as in MiniLLM's evaluation.
        flag: the argument that names the style, for messages.

    Raises:
        InputError: a chat without a template, or one that the template refuses.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"style must be one of {', '.join(PROMPT_STYLES)}, got {style!r}")
    template = ChatTemplate(tokenizer)
    found = [_prompt_ids(tokenizer, template, row, style, flag) for row in rows]
    ids, deaf = [of_row for of_row, _ in found], sum(not tools for _, tools in found)
    cut = sum(max_length is not None and len(prompt) > max_length for prompt in ids)
    return Prompts([prompt[:max_length] for prompt in ids], cut, deaf)


@dataclass(frozen=True)
class HeldOut:
    """Rows of held-out text.

    Args:
        input_ids: the tokens of each row.
        labels: the tokens that count, -100 in place of the others.
        cut: how many rows were longer than the longest length allowed.
    """

    input_ids: list[list[int]]
    labels: list[list[int]]
    cut: int = 0


def held_out(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    prompts: Prompts,
    *,
    max_length: int | None = None,
) -> HeldOut:
    """Each prompt with its first reference, of which alone the tokens count.

    A reference ends with the eos token, and loses its end where it is too long. A row without
    prompt counts from its second token on.

    Args:
        tokenizer: the models'.
        rows: the rows.
        prompts: ``encode_prompts`` of them.
        max_length: of prompt and reference together, in tokens.

    Raises:
        InputError: a prompt that leaves no room for a reference.
    """
    input_ids, labels, cut = [], [], 0
    for row, prompt in zip(rows, prompts.ids, strict=True):
        whole = bool(row.prompt)  # else the reference is the whole text, from its beginning
        start = prompt if whole else []
        reference = row.references[0]
        answer = (
            list(tokenizer(reference, add_special_tokens=False).input_ids)
            if whole
            else _text_ids(tokenizer, reference)
        )
        ids = start + answer
        if isinstance(tokenizer.eos_token_id, int):
            ids.append(tokenizer.eos_token_id)
        if max_length is not None and len(ids) > max_length:
            cut, ids = cut + 1, ids[:max_length]
        if len(ids) <= max(len(start), 1):
            raise InputError(
                f"row {row.number}: its prompt has {len(start)} tokens, --max_length {max_length} "
                "leaves no token of its reference; raise it, or cut prompts with "
                "--max_prompt_length"
            )
        input_ids.append(ids)
        labels.append([NO_LABEL] * len(start) + ids[len(start) :])
    return HeldOut(input_ids, labels, cut)


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase, template: ChatTemplate, row: Row, style: str, flag: str
) -> tuple[list[int], bool]:
    """A prompt's tokens, and whether its tools are written, if it has some."""
    if style == "plain" or (style == "published" and isinstance(row.prompt, str)):
        return _text_ids(tokenizer, as_text(row.prompt)), not row.options.get("tools")
    if not template:
        raise InputError(
            f"the prompts are chats, but the tokenizer has no chat template: give {flag} plain"
        )
    try:
        messages = template.messages(as_messages(row.prompt))
        text = template.write(messages, row.options, answer_follows=True)
        tools = template.check_whole(messages, row.options, text, answer_follows=True)
    except UnfitRow as error:
        raise InputError(f"row {row.number} {error}") from error
    return list(tokenizer(text, add_special_tokens=False).input_ids), tools


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids with what begins a text, and without what would end it."""
    ids = list(tokenizer(text).input_ids)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
