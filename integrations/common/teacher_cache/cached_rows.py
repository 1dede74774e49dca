"""The lists of a cached teacher for any batch of the rows that it was asked of, as NumPy arrays.

Training rows have the numbers from 0 on, held-out rows those after them, so that a batch's numbers
say which of the two caches it is of.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.marks import NO_ROW
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.format import HELD_OUT, INDEX, Lists, other_than
from amidmath.integrations.common.teacher_cache.store import (
    TopKStore,
    check_fingerprints,
)
from amidmath.integrations.common.text.vocabularies import BOTH_MODES, COMMON_ONLY


@dataclass(frozen=True)
class CachedRows:
    """Gives the lists of a batch's rows, in any order and as often as asked.

    Every process opens its own, and reads from the memory that the files are mapped to.

    Args:
        store: the cache of the training rows.
        held_out: that of the held-out rows; None if there is none.
        common: how many tokens student and teacher share. Listed tokens beyond are left out of
            the lists, so that their mass goes to the tail; None for all.
        tokens: how many first tokens of the student are compared, where all others are left out.
    """

    store: TopKStore
    held_out: TopKStore | None = None
    common: int | None = None
    tokens: int | None = None

    @classmethod
    def open(
        cls,
        folder: Path | str,
        expect: Mapping[str, str | None],
        *,
        rows: int | None = None,
        temperature: float = 1.0,
        arguments: Mapping[str, Any] | None = None,
    ) -> "CachedRows":
        """The cache of the training rows in a folder, if it is of what is trained on.

        Args:
            folder: what cache_teacher.py wrote.
            expect: fingerprints of "model", "tokenizer" and "data"; None is not compared, such as
                of a model that is not here.
            rows: how many the prepared dataset has.
            temperature: of the loss.
            arguments: the run's (``data_arguments``), to say which of them made other rows.

        Raises:
            InputError: no complete cache, or one of another model, tokenizer, data or temperature.
        """
        store = _open(Path(folder), expect, rows, "training data", arguments)
        found = cls(store)
        found.check_temperature(temperature)
        return found

    def with_held_out(
        self, held_out: PreparedRows, arguments: Mapping[str, Any] | None = None
    ) -> "CachedRows":
        """With the held-out rows' cache, if there is one in the folder ``held_out``.

        Args:
            held_out: the prepared held-out rows.
            arguments: as for :meth:`open`.

        Raises:
            InputError: it is not complete, or of other data, or not of the training rows' teacher,
                temperature or k.
        """
        folder = self.store.folder / HELD_OUT
        if not (folder / INDEX).is_file():
            return self
        rows = len(held_out.rows)
        store = _open(folder, held_out.fingerprints, rows, "held-out data", arguments)
        differing = other_than(self.store.header, store.header)
        if differing:
            raise InputError(
                f"the cache {folder} was made otherwise than that of the training rows "
                f"({differing}): make it anew with the arguments of the other, --held_out and "
                "--overwrite_output_dir"
            )
        return replace(self, held_out=store)

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

    def for_student(self, logits: int, vocab: str) -> "CachedRows":
        """The lists as a student of so many logits can be compared with them.

        Args:
            logits: how many the student gives.
            vocab: "strict", "common" or "common_only".

        Raises:
            InputError: strict, and not all tokens are the same; or the cached probabilities are
                not over the tokens that this compares.
        """
        header, folder = self.store.header, self.store.folder
        teacher = header.vocabulary
        same = teacher if header.common is None else header.common
        if header.of_logits is not None and vocab != COMMON_ONLY:
            raise InputError(
                f"--vocab {vocab}: the cache {folder} is of the first {teacher} of the teacher's "
                f"{header.of_logits} logits alone; give --vocab common_only, or make a cache "
                f"with --vocab {vocab}"
            )
        if vocab == COMMON_ONLY:
            if same < teacher or logits < teacher:
                raise InputError(
                    f"--vocab common_only: the cache {folder} is of {teacher} tokens, of which "
                    f"the student has {min(same, logits)}, and what the others leave is not "
                    "known; make a cache with --vocab common_only and this student, or give "
                    "--vocab common"
                )
            return replace(self, tokens=None if logits == teacher else teacher)
        if vocab == "common":
            return replace(self, common=min(same, logits))
        if logits != teacher:
            raise InputError(
                f"the student gives {logits} logits and the cached teacher {teacher}: one is "
                f"padded. {BOTH_MODES}"
            )
        if same < teacher:
            raise InputError(
                f"the cached teacher's tokens are the student's up to {same} of {teacher} only. "
                f"{BOTH_MODES}"
            )
        return self

    def number(self, train: PreparedRows, held_out: PreparedRows) -> tuple[Dataset, Dataset]:
        """Both with the numbers of their rows; held-out rows only if they are cached."""
        others = held_out.numbered(self.store.rows) if self.held_out else held_out.rows
        return train.numbered(), others

    def lists(self, shape: tuple[int, int], rows: Sequence[int]) -> am.TopK:
        """The lists of a batch, NumPy arrays (B, L, k) in float32 and int32.

        A position that is not cached has NaN.

        Args:
            shape: (B, L) of the batch; or (1, L) of one flat sequence that has the rows one after
                the other, as padding-free collators make it.
            rows: their numbers; ``NO_ROW`` for a row that only fills the batch.

        Raises:
            InputError: rows that are not cached, or that such a batch cannot hold.
        """
        k, (size, length) = self.store.header.k, shape
        places = [None if row == NO_ROW else self._find(row) for row in rows]
        lengths = [0 if place is None else place[0].length(place[1]) for place in places]
        flat = size == 1 and len(rows) > 1
        starts = np.cumsum([0, *lengths])[:-1] if flat else length * np.arange(len(rows))
        if (sum(lengths) if flat else max(lengths)) > length or (not flat and len(rows) != size):
            raise InputError(
                f"a batch of shape {size} × {length} cannot hold the {len(rows)} rows "
                f"{list(rows)[:4]}… of the cache, which have {lengths[:4]}… tokens: rows were cut "
                "or reordered after they were numbered"
            )
        logs = np.full((size * length, k), np.nan, dtype=np.float32)
        indices = np.full((size * length, k), -1, dtype=np.int32)
        # Not a list of no tokens, which would be a teacher that knows nothing, but none at all.
        indices[:, 0] = 0
        for place, start in zip(places, starts, strict=True):
            if place is not None:
                lists = place[0].read(place[1])
                at = start + lists.positions
                logs[at], indices[at] = normalised(lists), lists.indices
        if self.common is not None and self.common < self.store.header.vocabulary:
            indices[indices >= self.common] = -1
        return am.TopK(logs.reshape(size, length, k), indices.reshape(size, length, k))

    def _find(self, row: int) -> tuple[TopKStore, int]:
        """Where a row's lists are."""
        if self.held_out is None or row < self.store.rows:
            return self.store, row
        return self.held_out, row - self.store.rows

    def describe(self) -> str:
        """The teacher in one line."""
        header = self.store.header
        name = header.teacher.get("name", "a teacher")
        return (
            f"{name}, {header.k} of {header.vocabulary:,} tokens and the tail, from the cache "
            f"{self.store.folder}"
        )

    @property
    def kl_to_teacher(self) -> am.AMiD:
        """KL to the teacher at the temperature of the lists."""
        return am.AMiD(am.KL(), order="pr", lam=0.0, temperature=self.store.header.temperature)

    def compared(self) -> str:
        """Between what distributions held-out KL is."""
        header = self.store.header
        at = "" if header.temperature == 1.0 else f" at temperature {header.temperature:g}"
        return f"over the teacher's {header.k} cached tokens and the rest as one{at}"


def normalised(lists: Lists) -> NDArray[np.float32]:
    """The log-probabilities in float32, with their tails' summing to 1 as before rounding."""
    logs, tails = lists.log_probs.astype(np.float32), lists.tails.astype(np.float32)[:, None]
    sums = np.exp(logs).sum(axis=-1, keepdims=True, dtype=np.float64) + np.exp(tails)
    found: NDArray[np.float32] = logs - np.log(sums).astype(np.float32)
    return found


def _open(
    folder: Path,
    expect: Mapping[str, str | None],
    rows: int | None,
    what: str,
    arguments: Mapping[str, Any] | None,
) -> TopKStore:
    store = TopKStore(folder)
    check_fingerprints(folder, store.header, expect, arguments)
    if rows is not None and rows != store.rows:
        raise InputError(
            f"the cache {folder} has {store.rows} rows, the {what} {rows}: make one with "
            "cache_teacher.py and this run's arguments"
        )
    return store
