"""Rows of token ids and labels from a dataset in TRL's columns, as its SFTTrainer makes them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from amidmath.integrations.common.data.splits import (
    NUMBER,
    SOURCE,
    is_paired,
    number_of,
    unpaired,
    with_numbers,
)
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.given import given_rows
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.rows.packing import cut, packed_apart, packed_on
from amidmath.integrations.common.rows.settings import STRATEGIES, RowSettings
from amidmath.integrations.common.rows.token_range import check_tokens
from amidmath.integrations.common.rows.tokenised import (
    ANSWERED,
    tokenised,
)
from amidmath.integrations.common.storage.arrow_lists import BATCH, lists_of
from amidmath.integrations.common.text.written_chats import FOR_TEMPLATES


def prepare_rows(
    rows: Dataset,
    tokenizer: Any,
    settings: RowSettings,
    *,
    name: str = "train",
    pairs: bool = False,
    say: Callable[[str], object] = print,
    sizes: Mapping[str, int] | None = None,
) -> Dataset:
    """Tokenised rows.

    Args:
        rows: in one of the formats that ``data.check_rows`` lets through.
        tokenizer: one of transformers'.
        settings: how.
        name: what the rows are called in messages.
        pairs: whether the method trains on pairs of answers.
        say: takes what should be known of the rows, a line each.
        sizes: how many tokens each model reads, by its role.

    Returns:
        ``input_ids`` and ``labels`` (-100 where a token is not learned); ``seq_lengths``, the
        lengths of the rows that were put into one, where packing keeps them apart ("bfd");
        ``source`` where the rows were pairs.

    Raises:
        InputError: rows or settings that do not fit, or a row without a token to learn.
    """
    _check(settings)
    limit, wrapped = settings.max_length, settings.packing_strategy == "wrapped"
    made = whole_rows(
        rows,
        tokenizer,
        settings,
        None if settings.packing and wrapped else limit,
        name=name,
        pairs=pairs,
        joined=settings.packing,
        say=say,
        sizes=sizes,
    )
    if limit is None:
        return made
    if settings.packing:
        how = packed_apart if settings.packing_strategy == "bfd" else packed_on
        made = made.select_columns(["input_ids", "labels"])
        return _map(made, how, settings, f"Packing {name} dataset", size=limit)
    return _map(made, cut, settings, f"Truncating {name} dataset", size=limit)


def whole_rows(
    rows: Dataset,
    tokenizer: Any,
    settings: RowSettings,
    limit: int | None,
    *,
    name: str,
    pairs: bool,
    joined: bool,
    say: Callable[[str], object],
    sizes: Mapping[str, int] | None = None,
    template: str | None = None,
) -> Dataset:
    """Tokenised rows before they are cut or packed, each with a token to learn.

    Args:
        rows: as for :func:`prepare_rows`, and so are ``tokenizer``, ``settings``, ``name``,
            ``pairs``, ``say`` and ``sizes``.
        tokenizer: likewise.
        settings: likewise.
        limit: of a row only so many first tokens will be kept; None for all.
        name: likewise.
        pairs: likewise.
        joined: whether rows are packed, or laid end to end.
        say: likewise.
        sizes: likewise.
        template: the chat template, in place of the tokenizer's.

    Returns:
        ``input_ids`` and ``labels``; ``source`` where the rows were pairs.

    Raises:
        InputError: as for :func:`prepare_rows`.
    """
    rows = in_one_format(
        with_numbers(rows), settings.dataset_text_field, pairs=pairs, joined=joined
    )
    columns = set(rows.column_names)
    if settings.completion_only_loss is None:
        completions = columns >= ANSWERED
        if "completion_mask" in columns and not completions:
            say(f"The {name} rows' completion_mask is not used: --completion_only_loss true does.")
    else:
        completions = settings.completion_only_loss
    if "input_ids" in columns:
        made = given_rows(rows, settings, completions, name)
    else:
        made = tokenised(rows, tokenizer, settings, completions, name, say, template)
    check_tokens(made, sizes or {}, name, tokenizer)
    kept = learnable(made, limit, name, drop=settings.drop_unlearnable_rows, say=say)
    return kept.remove_columns(NUMBER)


def in_one_format(rows: Dataset, text_field: str, *, pairs: bool, joined: bool) -> Dataset:
    """The columns that are trained on, where rows are not tokenised already.

    Further columns do not count: not a text beside prompts and completions, nor a prompt alone
    beside messages.

    Args:
        rows: in one of the formats that ``data.check_rows`` lets through.
        text_field: the column of rows that are text only.
        pairs: whether the method trains on pairs of answers, of which each makes two rows.
        joined: whether rows are packed, or laid end to end.

    Returns:
        "prompt" and "completion", or "messages", or the text; "tools" and "chat_template_kwargs"
        beside messages. Messages are as they were given.

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
            f"the columns {sorted(columns - {NUMBER})} hold no training text: expected 'messages', "
            f"or 'prompt' and 'completion', or {text_field!r}"
        )
    chats = _are_chats(rows, wanted)
    carried = [c for c in (SOURCE, NUMBER, *(FOR_TEMPLATES if chats else ())) if c in columns]
    rows = rows.select_columns(wanted + carried)
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
        rows: with ``labels``; with ``refused`` if for some it is known why they have none.
        limit: only so many first tokens of a row are kept; None for all.
        name: what the rows are called in messages.
        drop: whether other rows are left out.
        say: takes a line on those that were.

    Raises:
        InputError: there are others and they are not to be dropped, or nothing would be left.
    """
    firsts = first_targets(rows)
    kept = firsts < (np.inf if limit is None else limit)
    reasons = rows["refused"] if "refused" in rows.column_names else None
    rows = rows if reasons is None else rows.remove_columns("refused")
    if kept.all():
        return rows
    lost = int(np.argmin(kept))
    if reasons is not None and reasons[lost]:
        reason, advice = f"it {reasons[lost]}", "mend or remove such rows"
    elif np.isinf(firsts[lost]):
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
        f"first row {number_of(rows, lost)}: {reason}"
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
