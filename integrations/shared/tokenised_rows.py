"""Texts and conversations as rows of token ids and labels, as TRL's SFTTrainer makes them."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from operator import add
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value
from datasets import List as ListOf

from amidmath.integrations.shared.arrow_lists import BATCH
from amidmath.integrations.shared.data import SOURCE
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.objective import NO_LABEL
from amidmath.integrations.shared.row_settings import RowSettings

ANSWERED = frozenset({"prompt", "completion"})
"""The columns of rows that are prompts with an answer."""

FOR_TEMPLATES = ("tools", "chat_template_kwargs")
"""What a chat template is given beside the messages."""

IDS = ListOf(Value("int32"))
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def tokenised(
    rows: Dataset,
    tokenizer: Any,
    settings: RowSettings,
    completions: bool,
    name: str,
    say: Callable[[str], object],
) -> Dataset:
    """Rows of texts or conversations as token ids."""
    carried = [c for c in (SOURCE, *FOR_TEMPLATES) if c in rows.column_names]
    wanted = [c for c in rows.column_names if c not in carried]
    if ANSWERED.issubset(wanted):
        wanted.sort(reverse=True)  # prompts come first
    chats = isinstance(rows[0][wanted[0]], list)
    if chats and settings.assistant_only_loss:
        _check_template(tokenizer)
    if not chats and settings.assistant_only_loss:
        raise InputError(
            f"--assistant_only_loss needs conversations, and the {name} rows have text in "
            f"{wanted[0]!r}; leave it out"
        )
    if not chats and tokenizer.eos_token is None:
        raise InputError("the tokenizer has no eos_token, which ends the text of a row")
    features = {"input_ids": IDS, "labels": IDS, "cut": Value("bool")}
    if SOURCE in carried:
        features[SOURCE] = rows.features[SOURCE]
    made: Dataset = rows.map(
        _tokenise_chats if chats else _tokenise_texts,
        batched=True,
        batch_size=BATCH,
        remove_columns=rows.column_names,
        features=Features(features),
        num_proc=settings.dataset_num_proc,
        fn_kwargs={
            "tokenizer": tokenizer,
            "columns": wanted,
            "completions": completions,
            **({"assistant": settings.assistant_only_loss} if chats else {}),
        },
        desc=f"Tokenizing {name} dataset",
    )
    cut = np.flatnonzero(np.asarray(made.with_format("numpy")["cut"][:]))
    if len(cut):
        say(
            f"{len(cut)} of {len(made)} {name} rows, first row {cut[0]}: prompt and completion do "
            "not begin with the tokens of the prompt alone, so the completion is taken to start "
            "where they part, after another context than such a prompt gives. Prompts that end "
            "where a token does, or a chat template that writes them alike in both, avoid it."
        )
    return made.remove_columns("cut")


def _check_template(tokenizer: Any) -> None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if not template or _GENERATION.search(template) is None:
        raise InputError(
            "--assistant_only_loss: the tokenizer's chat template does not say what the assistant "
            "generates; put {% generation %} … {% endgeneration %} around it"
        )


def _tokenise_texts(
    batch: Mapping[str, list[Any]], tokenizer: Any, columns: Sequence[str], completions: bool
) -> dict[str, list[Any]]:
    """Texts, which end with the eos token."""
    *prompts, lasts = (batch[name] for name in columns)
    end = tokenizer.eos_token
    lasts = [text if text.endswith(end) else text + end for text in lasts]
    wholes = list(map(add, *prompts, lasts)) if prompts else lasts
    begins = tokenizer(*prompts)["input_ids"] if prompts else None
    return _rows(batch, tokenizer(wholes)["input_ids"], begins, completions, tokenizer)


def _tokenise_chats(
    batch: Mapping[str, list[Any]],
    tokenizer: Any,
    columns: Sequence[str],
    completions: bool,
    assistant: bool,
) -> dict[str, list[Any]]:
    """Conversations, as the chat template writes them."""
    *prompts, lasts = (batch[name] for name in columns)
    wholes = list(map(add, *prompts, lasts)) if prompts else lasts
    options = [_options(batch, row) for row in range(len(wholes))]
    masks: list[list[int]] = []
    if assistant:
        chats = [
            tokenizer.apply_chat_template(
                chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **given
            )
            for chat, given in zip(wholes, options, strict=True)
        ]
        ids = [chat["input_ids"] for chat in chats]
        masks = [chat["assistant_masks"] for chat in chats]
    else:
        ids = _written(tokenizer, wholes, options, False)
    begins = _written(tokenizer, prompts[0], options, True) if prompts else None
    made = _rows(batch, ids, begins, completions, tokenizer)
    if assistant:
        made["labels"] = list(map(masked, made["labels"], masks))
    return made


def _options(batch: Mapping[str, list[Any]], row: int) -> dict[str, Any]:
    """What of a row its chat template is given beside the messages."""
    tools = batch["tools"][row] if "tools" in batch else None
    more = batch["chat_template_kwargs"][row] if "chat_template_kwargs" in batch else None
    return {"tools": json.loads(tools) if isinstance(tools, str) else tools, **(more or {})}


def _written(
    tokenizer: Any,
    chats: Sequence[list[dict[str, Any]]],
    options: Sequence[dict[str, Any]],
    answer_follows: bool,
) -> list[list[int]]:
    texts = [
        tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=answer_follows, **given
        )
        for chat, given in zip(chats, options, strict=True)
    ]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _rows(
    batch: Mapping[str, list[Any]],
    ids: list[list[int]],
    prompts: list[list[int]] | None,
    completions: bool,
    tokenizer: Any,
) -> dict[str, list[Any]]:
    """Token ids and labels; a completion starts where its row parts from the prompt alone."""
    starts, cut = [0] * len(ids), [False] * len(ids)
    if prompts is not None:
        starts = list(map(_common, prompts, ids))
        special = set(tokenizer.all_special_ids)  # an eos token after every text is no loss
        cut = [not special.issuperset(p[n:]) for n, p in zip(starts, prompts, strict=True)]
    if completions:
        labels = [[NO_LABEL] * n + row[n:] for n, row in zip(starts, ids, strict=True)]
    else:
        labels = ids
    made: dict[str, list[Any]] = {"input_ids": ids, "labels": labels, "cut": cut}
    return made | ({SOURCE: batch[SOURCE]} if SOURCE in batch else {})


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many same tokens two rows begin."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def masked(labels: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The labels where the mask is not 0, and no label elsewhere."""
    return [label if keep else NO_LABEL for label, keep in zip(labels, mask, strict=True)]
