"""Texts and conversations as rows of token ids and labels, as TRL's SFTTrainer makes them."""

from collections.abc import Callable, Mapping, Sequence
from operator import add
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import List as ListOf
from numpy.typing import NDArray

from amidmath.integrations.common.data.splits import NUMBER, SOURCE, number_of
from amidmath.integrations.common.errors import InputError, UnfitRow
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.rows.settings import RowSettings
from amidmath.integrations.common.storage.arrow_lists import BATCH
from amidmath.integrations.common.text.chat_template import ChatTemplate
from amidmath.integrations.common.text.conversations import conversation, is_conversation
from amidmath.integrations.common.text.written_chats import (
    FOR_TEMPLATES,
    WrittenChat,
    options_of,
    written,
)

ANSWERED = frozenset({"prompt", "completion"})
"""The columns of rows that are prompts with an answer."""

IDS = ListOf(Value("int32"))


def tokenised(
    rows: Dataset,
    tokenizer: Any,
    settings: RowSettings,
    completions: bool,
    name: str,
    say: Callable[[str], object],
    template: str | None = None,
) -> Dataset:
    """Rows of texts or conversations as token ids.

    Args:
        rows: as ``rows.in_one_format`` gives them, with their numbers.
        tokenizer: one of transformers'.
        settings: how.
        completions: whether prompts are not learned.
        name: what the rows are called in messages.
        say: takes what should be known of the rows, a line each.
        template: the chat template, in place of the tokenizer's.

    Returns:
        ``input_ids``, ``labels`` and ``refused``, why a row has none of them: "" but where
        ``settings.drop_unlearnable_rows`` leaves rows out that cannot be used; and ``source``.

    Raises:
        InputError: rows or settings that do not fit, or a row that its chat template refuses.
    """
    carried = [c for c in (SOURCE, NUMBER, *FOR_TEMPLATES) if c in rows.column_names]
    wanted = [c for c in rows.column_names if c not in carried]
    if ANSWERED.issubset(wanted):
        wanted.sort(reverse=True)  # prompts come first
    chats = is_conversation(rows[0][wanted[0]])
    if not chats and settings.assistant_only_loss:
        raise InputError(
            f"--assistant_only_loss needs conversations, and the {name} rows have text in "
            f"{wanted[0]!r}; leave it out"
        )
    if not chats and tokenizer.eos_token is None:
        raise InputError("the tokenizer has no eos_token, which ends the text of a row")
    given: dict[str, Any] = {"tokenizer": tokenizer, "columns": wanted, "completions": completions}
    if chats:
        given |= {
            "template": _template(tokenizer, template, name, settings.assistant_only_loss),
            "assistant": settings.assistant_only_loss,
            "name": name,
            "drop": settings.drop_unlearnable_rows,
        }
    features = {"input_ids": IDS, "labels": IDS, "refused": Value("string")}
    features |= {"cut": Value("bool"), "deaf": Value("bool")}
    features |= {c: rows.features[c] for c in (SOURCE, NUMBER) if c in carried}
    made: Dataset = rows.map(
        _tokenise_chats if chats else _tokenise_texts,
        batched=True,
        batch_size=BATCH,
        remove_columns=rows.column_names,
        features=Features(features),
        num_proc=settings.dataset_num_proc,
        fn_kwargs=given,
        desc=f"Tokenizing {name} dataset",
    )
    cut, deaf = (np.flatnonzero(made.with_format("numpy")[c][:]) for c in ("cut", "deaf"))

    def counted(which: NDArray[Any]) -> str:
        return (
            f"{len(which)} of {len(made)} {name} rows, first row {number_of(made, int(which[0]))}"
        )

    if len(cut):
        say(
            f"{counted(cut)}: prompt and completion do not begin with the tokens of the prompt "
            "alone, so the completion is taken to start where they part, after another context "
            "than such a prompt gives. Prompts that end where a token does, or a chat template "
            "that writes them alike in both, avoid it."
        )
    if len(deaf):
        say(
            f"{counted(deaf)}: the chat template does not write their tools, so that nothing is "
            "learned of them. A template that knows tools avoids it."
        )
    return made.remove_columns(["cut", "deaf"])


def _template(tokenizer: Any, source: str | None, name: str, assistant: bool) -> ChatTemplate:
    """The chat template, if there is one that serves; InputError if not."""
    template = ChatTemplate(tokenizer, source)
    if not template:
        raise InputError(
            f"the {name} rows are conversations, but the tokenizer has no chat template: give one "
            "that has, or rows of 'prompt' and 'completion' that are texts"
        )
    if assistant and not template.marks_answers:
        raise InputError(
            "--assistant_only_loss: the tokenizer's chat template does not say what the assistant "
            "generates; put {% generation %} … {% endgeneration %} around it"
        )
    if assistant and not tokenizer.is_fast:
        raise InputError(
            "--assistant_only_loss: a tokenizer in Python does not say which characters a token "
            "is of; give models with a tokenizer.json"
        )
    return template


def _tokenise_texts(
    batch: Mapping[str, list[Any]],
    tokenizer: Any,
    columns: Sequence[str],
    completions: bool,
) -> dict[str, list[Any]]:
    """Texts, which end with the eos token."""
    *prompts, lasts = (batch[name] for name in columns)
    end = tokenizer.eos_token
    empty = [not text.removesuffix(end).strip() for text in lasts]
    lasts = [text if text.endswith(end) else text + end for text in lasts]
    wholes = list(map(add, *prompts, lasts)) if prompts else lasts
    begins = tokenizer(*prompts)["input_ids"] if prompts else None
    return _rows(batch, tokenizer(wholes)["input_ids"], begins, completions, empty, tokenizer)


def _tokenise_chats(
    batch: Mapping[str, list[Any]],
    tokenizer: Any,
    columns: Sequence[str],
    completions: bool,
    template: ChatTemplate,
    assistant: bool,
    name: str,
    drop: bool,
) -> dict[str, list[Any]]:
    """Conversations, as the chat template writes them."""
    chats: list[WrittenChat] = []
    for row, number in enumerate(batch[NUMBER]):
        try:
            parts = [conversation(batch[column][row], column) for column in columns]
            options = options_of(
                {name: batch[name][row] for name in FOR_TEMPLATES if name in batch}
            )
            chats.append(written(template, parts, options, assistant))
        except UnfitRow as error:
            if not drop:
                raise InputError(
                    f"{name} row {number} {error}. Mend or remove such rows, or give "
                    "--drop_unlearnable_rows"
                ) from error
            chats.append(WrittenChat("", "", refused=str(error)))

    def encoded(texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    ids = [chat.ids for chat in chats] if assistant else encoded([chat.whole for chat in chats])
    begins = encoded([chat.prompt for chat in chats]) if len(columns) > 1 else None
    empty = [chat.empty for chat in chats]
    made = _rows(batch, ids, begins, completions, empty, tokenizer)
    if assistant:
        made["labels"] = list(map(masked, made["labels"], (chat.answers for chat in chats)))
    made["refused"] = [chat.refused for chat in chats]
    made["deaf"] = [chat.deaf for chat in chats]
    return made


def _rows(
    batch: Mapping[str, list[Any]],
    ids: list[list[int]],
    prompts: list[list[int]] | None,
    completions: bool,
    empty: Sequence[bool],
    tokenizer: Any,
) -> dict[str, list[Any]]:
    """Token ids and labels; a completion starts where its row parts from the prompt alone.

    Of an answer that is empty nothing is learned, not even that it ends.
    """
    starts, cut = [0] * len(ids), [False] * len(ids)
    if prompts is not None:
        starts = list(map(_common, prompts, ids))
        special = set(tokenizer.all_special_ids)  # an eos token after every text is no loss
        cut = [not special.issuperset(p[n:]) for n, p in zip(starts, prompts, strict=True)]
    labels = ids
    if completions:
        firsts = [len(row) if no else n for n, row, no in zip(starts, ids, empty, strict=True)]
        labels = [[NO_LABEL] * n + row[n:] for n, row in zip(firsts, ids, strict=True)]
    made: dict[str, list[Any]] = {"input_ids": ids, "labels": labels, "cut": cut}
    made |= {"refused": [""] * len(ids), "deaf": [False] * len(ids)}
    return made | {name: batch[name] for name in (SOURCE, NUMBER) if name in batch}


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many same tokens two rows begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def masked(labels: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The labels where the mask is not 0, and no label elsewhere."""
    return [label if keep else NO_LABEL for label, keep in zip(labels, mask, strict=True)]
