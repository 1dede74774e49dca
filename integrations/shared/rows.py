"""Rows of token ids and labels from a dataset in TRL's columns, as its SFTTrainer makes them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset, Features
from numpy.typing import NDArray

from amidmath.integrations.shared.arrow_lists import BATCH, lists_of
from amidmath.integrations.shared.data import SOURCE, is_paired, unpaired
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.objective import NO_LABEL
from amidmath.integrations.shared.packing import cut, packed_apart, packed_on
from amidmath.integrations.shared.row_settings import STRATEGIES, RowSettings
from amidmath.integrations.shared.tokenised_rows import (
    ANSWERED,
    FOR_TEMPLATES,
    IDS,
    masked,
    tokenised,
)


def prepare_rows(
    rows: Dataset,
    tokenizer: Any,
    settings: RowSettings,
    *,
    name: str = "train",
    pairs: bool = False,
    say: Callable[[str], object] = print,
) -> Dataset:
    """Tokenised rows.

    Args:
        rows: in one of the formats that ``data.check_rows`` lets through.
        tokenizer: one of transformers'.
        settings: how.
        name: what the rows are called in messages.
        pairs: whether the method trains on pairs of answers.
        say: takes what should be known of the rows, a line each.

    Returns:
        ``input_ids`` and ``labels`` (-100 where a token is not learned); ``seq_lengths``, the
        lengths of the rows that were put into one, where packing keeps them apart ("bfd");
        ``source`` where the rows were pairs.

    Raises:
        InputError: rows or settings that do not fit, or a row without a token to learn.
    """
    _check(settings)
    rows = in_one_format(
        rows,
        settings.dataset_text_field,
        pairs=pairs,
        joined=settings.packing,
        num_proc=settings.dataset_num_proc,
    )
    columns = set(rows.column_names)
    if settings.completion_only_loss is None:
        completions = columns >= ANSWERED
        if "completion_mask" in columns and not completions:
            say(f"The {name} rows' completion_mask is not used: --completion_only_loss true does.")
    else:
        completions = settings.completion_only_loss
    if "input_ids" in columns:
        made = _given(rows, settings, completions, name)
    else:
        made = tokenised(rows, tokenizer, settings, completions, name, say)
    limit = settings.max_length
    made = learnable(
        made,
        None if settings.packing and settings.packing_strategy == "wrapped" else limit,
        name,
        drop=settings.drop_unlearnable_rows,
        say=say,
    )
    if limit is None:
        return made
    if settings.packing:
        how = packed_apart if settings.packing_strategy == "bfd" else packed_on
        made = made.select_columns(["input_ids", "labels"])
        return _map(made, how, settings, f"Packing {name} dataset", size=limit)
    return _map(made, cut, settings, f"Truncating {name} dataset", size=limit)


def in_one_format(
    rows: Dataset, text_field: str, *, pairs: bool, joined: bool, num_proc: int | None = None
) -> Dataset:
    """The columns that are trained on, where rows are not tokenised already.

    Further columns do not count: not a text beside prompts and completions, nor a prompt alone
    beside messages.

    Args:
        rows: in one of the formats that ``data.check_rows`` lets through.
        text_field: the column of rows that are text only.
        pairs: whether the method trains on pairs of answers, of which each makes two rows.
        joined: whether rows are packed, or laid end to end.
        num_proc: how many processes convert conversations.

    Returns:
        "prompt" and "completion", or "messages", or the text; "tools" and "chat_template_kwargs"
        beside messages. Messages have "role" and "content", not "from" and "value".

    Raises:
        InputError: no such format; or pairs, which are not wanted, or rows would be joined.
    """
    if is_paired(rows):
        if not pairs or joined:
            raise InputError(
                "the data has pairs of answers (chosen, rejected), which --method distillm2 trains "
                "on, without packing or padding-free batches; other methods take a column "
                "'completion'"
            )
        rows = unpaired(rows)
    columns = set(rows.column_names)
    if "input_ids" in columns:
        return rows
    if columns >= ANSWERED:
        wanted = ["prompt", "completion"]
    else:
        lists = {name for name, value in rows[0].items() if isinstance(value, list)}
        wanted = [c for c in ("messages", "conversations") if c in lists]
        wanted = [*wanted, *({text_field} & columns)][:1]
    if not wanted:
        raise InputError(
            f"the columns {sorted(columns)} hold no training text: expected 'messages', or "
            f"'prompt' and 'completion', or {text_field!r}"
        )
    chats = _are_chats(rows, wanted)
    carried = [c for c in (SOURCE, *(FOR_TEMPLATES if chats else ())) if c in columns]
    rows = rows.select_columns(wanted + carried)
    if not chats:
        return rows
    if any("from" in rows[0][name][0] for name in wanted):
        rows = rows.map(
            _with_roles, fn_kwargs={"columns": wanted}, num_proc=num_proc, desc="Naming roles"
        )
    return rows.rename_column("conversations", "messages") if "conversations" in wanted else rows


def learnable(
    rows: Dataset,
    limit: int | None,
    name: str,
    *,
    drop: bool,
    say: Callable[[str], object],
) -> Dataset:
    """The rows with a token to learn.

    Args:
        rows: with ``labels``.
        limit: only so many first tokens of a row are kept; None for all.
        name: what the rows are called in messages.
        drop: whether other rows are left out.
        say: takes a line on those that were.

    Raises:
        InputError: there are others and they are not to be dropped, or nothing would be left.
    """
    firsts = first_targets(rows)
    kept = firsts < (np.inf if limit is None else limit)
    if kept.all():
        return rows
    lost = int(np.argmin(kept))
    if np.isinf(firsts[lost]):
        reason = "it has no token to learn (no answer, or all of it masked)"
        advice = "complete or remove such rows"
    else:
        reason = (
            f"its prompt has {firsts[lost]:.0f} tokens, --max_length {limit} leaves no room to "
            "answer"
        )
        advice = "raise --max_length (within the models' context) or shorten the prompts"
    message = (
        f"{np.count_nonzero(~kept)} of {len(rows)} {name} rows cannot be learned from, "
        f"first row {lost}: {reason}"
    )
    if not drop:
        raise InputError(f"{message}; {advice}, or give --drop_unlearnable_rows")
    if not kept.any():
        raise InputError(f"{message}; nothing would be left: {advice}")
    say(f"Left out: {message}.")
    return rows.select(np.flatnonzero(kept))


def first_targets(rows: Dataset) -> NDArray[np.float64]:
    """Of every row the index of its first token to learn, inf where it has none.

    The very first token of a row is never predicted, so it is none to learn.
    """
    found = [np.empty(0)]
    for labels, lengths in lists_of(rows, "labels"):
        ends = np.cumsum(lengths)
        starts = ends - lengths
        learned = labels != NO_LABEL
        learned[starts[lengths > 0]] = False
        at = np.append(np.flatnonzero(learned), len(labels))
        first = at[np.searchsorted(at, starts)]
        found.append(np.where(first < ends, first - starts, np.inf))
    return np.concatenate(found)


def _check(settings: RowSettings) -> None:
    if not settings.packing:
        return
    if settings.packing_strategy not in STRATEGIES:
        raise InputError(
            f"--packing_strategy must be one of {', '.join(STRATEGIES)}, "
            f"got {settings.packing_strategy!r}"
        )
    if settings.max_length is None:
        raise InputError("--packing needs --max_length, the length of the packed rows")


def _map(
    rows: Dataset, function: Callable[..., Any], settings: RowSettings, what: str, **given: Any
) -> Dataset:
    """``function`` of the rows, some at a time as an Arrow table; what it returns replaces them."""
    made: Dataset = rows.with_format("arrow").map(
        function,
        batched=True,
        batch_size=BATCH,
        remove_columns=rows.column_names,
        num_proc=settings.dataset_num_proc,
        fn_kwargs=given,
        desc=what,
    )
    return made.with_format(None)


def _are_chats(rows: Dataset, columns: Sequence[str]) -> bool:
    """Whether the columns are conversations; InputError where some are and some are text."""
    kinds = {name: isinstance(rows[0][name], list) for name in columns}
    if len(set(kinds.values())) > 1:
        text, chat = sorted(kinds, key=lambda name: kinds[name])
        raise InputError(
            f"the column {text!r} is text and {chat!r} has messages: both must be one or the other"
        )
    return kinds[columns[0]]


def _with_roles(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Messages of "from" and "value" as such of "role" and "content"."""
    names = {"from": "role", "value": "content"}
    return {
        column: [{names.get(key, key): part for key, part in turn.items()} for turn in row[column]]
        for column in columns
    }


def _given(rows: Dataset, settings: RowSettings, completions: bool, name: str) -> Dataset:
    """Rows that are tokenised already, with labels or masks if they have them."""
    columns = rows.column_names
    masks = ["completion_mask"] if completions else []
    masks = ["labels"] if "labels" in columns else [*masks, "assistant_masks"]
    used = ["input_ids", *(mask for mask in masks if mask in columns)]
    kept = [c for c in (SOURCE,) if c in columns]
    chosen = rows.select_columns([*used, *kept])
    made: Dataset = chosen.map(
        _take_labels,
        batched=True,
        batch_size=BATCH,
        with_indices=True,
        remove_columns=chosen.column_names,
        features=Features({"input_ids": IDS, "labels": IDS, **{c: rows.features[c] for c in kept}}),
        num_proc=settings.dataset_num_proc,
        fn_kwargs={"used": used, "name": name},
        desc=f"Building labels for {name} dataset",
    )
    return made


def _take_labels(
    batch: Mapping[str, list[Any]], numbers: Sequence[int], used: Sequence[str], name: str
) -> dict[str, list[Any]]:
    ids = batch["input_ids"]
    for column in used[1:]:
        for number, row, values in zip(numbers, ids, batch[column], strict=True):
            if len(values) != len(row):
                raise InputError(
                    f"{name} row {number}: {column} has {len(values)} entries and input_ids "
                    f"{len(row)}; expected one for each token"
                )
    labels = ids
    for column in used[1:]:
        labels = batch[column] if column == "labels" else list(map(masked, labels, batch[column]))
    made = {"input_ids": ids, "labels": labels}
    return made | ({SOURCE: batch[SOURCE]} if SOURCE in batch else {})
