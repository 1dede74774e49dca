"""The source of a cache: a teacher and the rows that it is asked of."""

from collections.abc import Sequence
from typing import Protocol

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.prepared import PreparedRows
from amidmath.integrations.common.teacher_cache.format import Lists


class CacheSource(Protocol):
    """A teacher in memory, and rows as they are prepared for training."""

    @property
    def vocabulary(self) -> int:
        """Over how many first tokens its probabilities are cached."""
        ...

    @property
    def logits(self) -> int:
        """How many logits the teacher gives."""
        ...

    @property
    def prepared(self) -> PreparedRows:
        """The rows."""
        ...

    @property
    def common(self) -> int:
        """How many first tokens are the same for the tokenizer that prepared the rows."""
        ...

    @property
    def dtype(self) -> str:
        """Of the teacher's weights, as they are in memory: "float32"."""
        ...

    @property
    def precision(self) -> str:
        """In what the teacher multiplies: "bf16" or "fp16"; "no" for its own."""
        ...

    @property
    def rows_at_once(self) -> int:
        """How many rows it is asked of in a forward pass."""
        ...

    def ask(self, rows: Sequence[int], k: int) -> dict[int, Lists]:
        """The lists of some rows, one forward pass."""
        ...


def batches(source: CacheSource, rows: range, size: int) -> list[list[int]]:
    """Rows of about one length together, the same ones every time."""
    by_length = sorted(rows, key=lambda row: (source.prepared.lengths[row], row))
    return [by_length[i : i + size] for i in range(0, len(by_length), size)]


def check_k(k: int, vocabulary: int) -> None:
    """Raise InputError where a teacher has fewer tokens than are to be cached."""
    if k > vocabulary:
        raise InputError(f"--k {k}: the teacher has {vocabulary} tokens only")
