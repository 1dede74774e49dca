"""Tokenizer and rows as SFTTrainer is to find them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.text.conversations import conversation
from amidmath.integrations.common.text.tokenizers import take_template
from amidmath.integrations.torch_loop.settings.config import AMiDConfig


@contextmanager
def own_template(
    args: AMiDConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[None]:
    """Give the tokenizer the template that is asked for, so that SFTTrainer adds no tokens.

    Args:
        args: names the template; not so within the block.
        model: the student, whose end of an answer becomes the tokenizer's.
        tokenizer: the student's; None leaves it to SFTTrainer.

    Raises:
        InputError: a template that does not fit.
    """
    path = args.chat_template_path
    if path is not None and tokenizer is not None:
        before = tokenizer.eos_token_id
        take_template(tokenizer, path)
        args.chat_template_path, end = None, tokenizer.eos_token_id
        if end != before:
            cast("Any", model.config.get_text_config()).eos_token_id = end
            if model.generation_config is not None:
                model.generation_config.eos_token_id = cast("Any", end)
    try:
        yield
    finally:
        args.chat_template_path = path


@contextmanager
def cut_here(args: AMiDConfig) -> Iterator[None]:
    """Hide max_length where SFTTrainer refuses it, which thinks that rows would not be cut."""
    before = args.max_length
    if args.padding_free and not args.packing:
        args.max_length = None
    try:
        yield
    finally:
        args.max_length = before


def in_trl_words(rows: Any) -> Any:
    """Conversations of "from" and "value" with "role" and "content", by which TRL knows them."""
    if "conversations" not in getattr(rows, "column_names", ()):
        return rows

    def messages(row: dict[str, Any]) -> dict[str, Any]:
        return {"messages": conversation(row["conversations"], "conversations")}

    return rows.map(messages, remove_columns="conversations")


def check_padding(tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, int]) -> None:
    """Raise InputError where a model has no embedding for the token that fills batches.

    Args:
        tokenizer: whose token it is.
        sizes: how many tokens each model reads, by its role.
    """
    role = min(sizes, key=lambda one: sizes[one])
    pad: Any = tokenizer.pad_token_id
    if pad >= sizes[role]:
        raise InputError(
            f"the token {tokenizer.pad_token!r} that fills batches is number {pad}, beyond those "
            f"that the {role} reads, which end at {sizes[role] - 1}: name another one with "
            "--pad_token"
        )
