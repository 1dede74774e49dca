"""Rows of token ids and labels from a dataset in TRL's columns, as its SFTTrainer makes them."""

import json
import re
from abc import abstractmethod
from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import add
from typing import Any, Protocol

import numpy as np
from datasets import Dataset, Features, Value
from datasets import List as ListOf
from numpy.typing import NDArray

from amidmath.integrations.shared.data import SOURCE, is_paired, unpaired
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.objective import NO_LABEL

STRATEGIES = ("bfd", "wrapped")
"""How rows are packed: whole ones, by best-fit decreasing; or one stream, cut anywhere."""

_BATCH = 1000  # rows, as datasets' map takes them
_IDS = ListOf(Value("int32"))
_ANSWERED = {"prompt", "completion"}
_FOR_TEMPLATES = ("tools", "chat_template_kwargs")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class RowSettings(Protocol):
    """How rows are made, under the names of TRL's SFTConfig.

    Attributes:
        packing: whether several rows are put into one of ``max_length``.
        packing_strategy: one of ``STRATEGIES``.
        completion_only_loss: whether prompts are not learned; None for not, where there are some.
        assistant_only_loss: whether of conversations only what the assistant says is learned.
        dataset_text_field: the column of rows that are text only.
        dataset_num_proc: how many processes tokenise.
        drop_unlearnable_rows: whether rows without a token to learn are left out, and no error.
    """

    packing: bool
    packing_strategy: str
    completion_only_loss: bool | None
    assistant_only_loss: bool
    dataset_text_field: str
    dataset_num_proc: int | None
    drop_unlearnable_rows: bool

    @property
    @abstractmethod
    def max_length(self) -> int | None:
        """How many tokens a row may have; None for any number."""


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
        completions = columns >= _ANSWERED
        if "completion_mask" in columns and not completions:
            say(f"The {name} rows' completion_mask is not used: --completion_only_loss true does.")
    else:
        completions = settings.completion_only_loss
    if "input_ids" in columns:
        made = _given(rows, settings, completions, name)
    else:
        made = _tokenised(rows, tokenizer, settings, completions, name, say)
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
        how = _packed_apart if settings.packing_strategy == "bfd" else _packed_on
        made = made.select_columns(["input_ids", "labels"])
        return _map(made, how, settings, f"Packing {name} dataset", size=limit)
    return _map(made, _cut, settings, f"Truncating {name} dataset", size=limit)


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
    if columns >= _ANSWERED:
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
    carried = [c for c in (SOURCE, *(_FOR_TEMPLATES if chats else ())) if c in columns]
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


def lists_of(rows: Dataset, column: str) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """A column of lists, some rows at a time: their numbers end to end, and how many each has."""
    parts: Any = rows.select_columns([column]).with_format("arrow").iter(batch_size=_BATCH)
    for part in parts:
        yield lists_in(part, column)


def lists_in(table: Any, column: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The same of one Arrow table."""
    lists = table.column(column).combine_chunks()
    numbers = lists.flatten().to_numpy(zero_copy_only=False)
    return numbers, lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


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
        batch_size=_BATCH,
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


def _tokenised(
    rows: Dataset,
    tokenizer: Any,
    settings: RowSettings,
    completions: bool,
    name: str,
    say: Callable[[str], object],
) -> Dataset:
    """Rows of texts or conversations as token ids."""
    carried = [c for c in (SOURCE, *_FOR_TEMPLATES) if c in rows.column_names]
    wanted = [c for c in rows.column_names if c not in carried]
    if _ANSWERED.issubset(wanted):
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
    features = {"input_ids": _IDS, "labels": _IDS, "cut": Value("bool")}
    if SOURCE in carried:
        features[SOURCE] = rows.features[SOURCE]
    made: Dataset = rows.map(
        _tokenise_chats if chats else _tokenise_texts,
        batched=True,
        batch_size=_BATCH,
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
        made["labels"] = list(map(_masked, made["labels"], masks))
    return made


def _with_roles(row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Messages of "from" and "value" as such of "role" and "content"."""
    names = {"from": "role", "value": "content"}
    return {
        column: [{names.get(key, key): part for key, part in turn.items()} for turn in row[column]]
        for column in columns
    }


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


def _masked(labels: Sequence[int], mask: Sequence[int]) -> list[int]:
    return [label if keep else NO_LABEL for label, keep in zip(labels, mask, strict=True)]


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
        batch_size=_BATCH,
        with_indices=True,
        remove_columns=chosen.column_names,
        features=Features(
            {"input_ids": _IDS, "labels": _IDS, **{c: rows.features[c] for c in kept}}
        ),
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
        labels = batch[column] if column == "labels" else list(map(_masked, labels, batch[column]))
    made = {"input_ids": ids, "labels": labels}
    return made | ({SOURCE: batch[SOURCE]} if SOURCE in batch else {})


def _cut(table: Any, size: int) -> dict[str, Any]:
    """The first ``size`` tokens of every row."""
    made = {}
    for name in table.column_names:
        if name == SOURCE:
            made[name] = table.column(name).to_pylist()
        else:
            made[name] = [row[:size] for row in _split(table, name)]
    return made


def _split(table: Any, column: str) -> list[NDArray[Any]]:
    numbers, lengths = lists_in(table, column)
    return np.split(numbers, np.cumsum(lengths)[:-1])


def _packed_on(table: Any, size: int) -> dict[str, list[NDArray[Any]]]:
    """The rows as one stream, a piece of ``size`` tokens after the other."""
    made = {}
    for name in table.column_names:
        numbers, _ = lists_in(table, name)
        made[name] = np.split(numbers, range(size, len(numbers), size))
    return made


def _packed_apart(table: Any, size: int) -> dict[str, list[Any]]:
    """The rows, none longer than ``size``, put together so that little room is left."""
    columns = {name: [row[:size] for row in _split(table, name)] for name in table.column_names}
    lengths = [len(row) for row in columns["input_ids"]]
    groups = best_fit(lengths, size)
    made: dict[str, list[Any]] = {
        name: [np.concatenate([rows[i] for i in group]) for group in groups]
        for name, rows in columns.items()
    }
    return made | {"seq_lengths": [[lengths[i] for i in group] for group in groups]}


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which rows are put together: best-fit decreasing.

    The longest row is placed first, each where it leaves the least room, or in a new group where
    there is no room; of groups with as much room, the one that has had it for longest.

    Args:
        lengths: of the rows, at most ``size``; those of length 0 are left out.
        size: of a group.

    Returns:
        The numbers of the rows of every group.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []  # different ones, ascending
    with_room: defaultdict[int, deque[list[int]]] = defaultdict(deque)
    filled = (row for row in range(len(lengths)) if lengths[row])
    for row in sorted(filled, key=lambda row: -lengths[row]):
        at = bisect_left(rooms, lengths[row])
        if at < len(rooms):
            room = rooms[at]
            group = with_room[room].popleft()
            if not with_room[room]:
                del rooms[at]
        else:
            room, group = size, []
            groups.append(group)
        group.append(row)
        left = room - lengths[row]
        if left:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(group)
    return groups
