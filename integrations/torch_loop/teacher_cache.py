"""A teacher that is not there: its most probable tokens, cached by row of the prepared dataset."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

import amidmath as am
from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.top_k_store import Lists, TopKStore, check_fingerprints
from amidmath.integrations.torch_loop.states import States, logits_of

T = TypeVar("T")

ROW = "row"
"""The column, and the entry of a batch, that numbers the rows of the prepared dataset."""

_CHUNK_BYTES = 2**26


class CachedTeacher:
    """Gives the cached lists of a batch's rows, in any order and as often as asked.

    Every process opens its own, and reads from the memory that the files are mapped to.

    Args:
        store: the cache.
        common: how many tokens student and teacher share. Listed tokens beyond are left out of
            the lists, so that their mass goes to the tail; None for all.
    """

    knows_new_rows = False
    model: torch.nn.Module | None = None

    def __init__(self, store: TopKStore, common: int | None = None) -> None:
        """See the class; :meth:`open` makes one of a folder."""
        self.store, self.common = store, common

    @classmethod
    def open(
        cls,
        folder: Path | str,
        expect: Mapping[str, str | None],
        *,
        rows: int | None = None,
        temperature: float = 1.0,
        common: int | None = None,
    ) -> "CachedTeacher":
        """The cache in a folder, if it is of what is trained on.

        Args:
            folder: what cache_teacher.py wrote.
            expect: fingerprints of "model", "tokenizer" and "data"; None is not compared, such as
                of a model that is not here.
            rows: how many the prepared dataset has.
            temperature: of the loss.
            common: as for the class.

        Raises:
            InputError: no complete cache, or one of another model, tokenizer, data or temperature.
        """
        store = TopKStore(Path(folder))
        check_fingerprints(store.folder, store.header.fingerprints, expect)
        if rows is not None and rows != store.rows:
            raise InputError(
                f"the cache {folder} has {store.rows} rows, the training data {rows}: make one "
                "with cache_teacher.py and this run's arguments"
            )
        teacher = cls(store, common)
        teacher.check_temperature(temperature)
        return teacher

    def check_temperature(self, temperature: float) -> None:
        """Raise InputError unless the lists are at this temperature; they cannot be changed to it.

        A list at another temperature needs all logits: those of its tail are not known.
        """
        cached = self.store.header.temperature
        if temperature != cached:
            raise InputError(
                f"--temperature {temperature:g}: the cache {self.store.folder} was taken at "
                f"{cached:g} and cannot be changed; train at that, or make a cache with "
                f"--temperature {temperature:g}"
            )

    def give(self, batch: Mapping[str, Any], then: Callable[[am.TopK], T]) -> T:
        """``then`` of the lists for a batch.

        Args:
            batch: with ``input_ids`` (B, L) and ``row`` (B,), or of one flat sequence (1, L) that
                has the rows one after the other, as padding-free collators make it.
            then: what to do with the lists, (B, L, k). A position that is not cached has NaN.

        Raises:
            InputError: a batch without row numbers, or of rows that are not those of the cache.
        """
        ids = batch["input_ids"]
        return then(self._lists(tuple(ids.shape), self._rows(batch), ids.device))

    def describe(self) -> str:
        """The teacher in one line."""
        header = self.store.header
        name = header.teacher.get("name", "a teacher")
        return (
            f"{name}, {header.k} of {header.vocabulary:,} tokens and the tail, from the cache "
            f"{self.store.folder}"
        )

    def _rows(self, batch: Mapping[str, Any]) -> list[int]:
        if ROW not in batch:
            raise InputError(
                "the batch has no row numbers, so it is not of the cached dataset: generated text "
                "needs a teacher in memory (--teacher_model_name_or_path without --teacher_cache)"
            )
        return [int(row) for row in batch[ROW].tolist()]

    def _lists(self, shape: tuple[int, ...], rows: list[int], device: torch.device) -> am.TopK:
        k, (size, length) = self.store.header.k, shape
        lengths = [self.store.length(row) for row in rows]
        flat = size == 1 and len(rows) > 1
        starts = np.cumsum([0, *lengths])[:-1] if flat else length * np.arange(len(rows))
        if (sum(lengths) if flat else max(lengths)) > length or (not flat and len(rows) != size):
            raise InputError(
                f"a batch of shape {size} × {length} cannot hold the {len(rows)} rows {rows[:4]}… "
                f"of the cache, which have {lengths[:4]}… tokens: rows were cut or reordered after "
                "they were numbered"
            )
        logs = np.full((size * length, k), np.nan, dtype=np.float32)
        indices = np.full((size * length, k), -1, dtype=np.int32)
        # Not a list of no tokens, which would be a teacher that knows nothing, but none at all.
        indices[:, 0] = 0
        for row, start in zip(rows, starts, strict=True):
            lists = self.store.read(row)
            at = start + lists.positions
            logs[at], indices[at] = normalised(lists), lists.indices
        if self.common is not None and self.common < self.store.header.vocabulary:
            indices[indices >= self.common] = -1
        top = (torch.from_numpy(array).view(size, length, k) for array in (logs, indices))
        return am.TopK(*(array.to(device, non_blocking=True) for array in top))


def normalised(lists: Lists) -> NDArray[np.float32]:
    """The log-probabilities in float32, with their tails' summing to 1 as before rounding."""
    logs, tails = lists.log_probs.astype(np.float32), lists.tails.astype(np.float32)[:, None]
    sums = np.exp(logs).sum(axis=-1, keepdims=True, dtype=np.float64) + np.exp(tails)
    found: NDArray[np.float32] = logs - np.log(sums).astype(np.float32)
    return found


@torch.no_grad()
def lists_of(
    states: States, keep: torch.Tensor, k: int, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k most probable tokens of some positions, and what they leave.

    Args:
        states: of a batch, hidden (B, L, H).
        keep: shape (B, L), the positions that count.
        k: how many tokens.
        temperature: divides the logits.

    Returns:
        Log-probabilities (P, k) in float32, tokens (P, k), and the logarithm of the mass of the
        others (P,), added up rather than subtracted.
    """
    hidden = states.hidden[keep]
    vocabulary = states.head.weight.shape[0]
    step = max(1, _CHUNK_BYTES // (4 * vocabulary))
    found = []
    for start in range(0, max(1, hidden.shape[0]), step):
        logits = logits_of(hidden[start : start + step], states.head)
        logs = torch.log_softmax(logits.float() / temperature, dim=-1)
        top, indices = logs.topk(k, dim=-1)
        tails = logs.scatter_(-1, indices, -torch.inf).logsumexp(-1)
        found.append((top, indices, tails))
    log_probs, tokens, tails = (torch.cat(parts) for parts in zip(*found, strict=True))
    return log_probs, tokens, tails


def number_rows(rows: Dataset) -> Dataset:
    """The prepared rows with the column ``row``; what is shuffled or selected later keeps it."""
    return rows if ROW in rows.column_names else rows.add_column(ROW, list(range(len(rows))))


def counting_positions(
    labels: Sequence[int], documents: Sequence[int] | None
) -> NDArray[np.integer[Any]]:
    """Which positions of a prepared row predict a labelled token.

    Args:
        labels: of the row, -100 where nothing is learned.
        documents: the lengths of the documents packed into it, whose first tokens padding-free
            collators do not let the document before predict; None where it is one sequence.
    """
    counts = np.asarray(labels) != -100
    counts[[0, *np.cumsum(documents or [])[:-1]]] = False
    return np.flatnonzero(counts) - 1
