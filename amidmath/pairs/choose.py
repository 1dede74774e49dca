"""The call of a loss with whatever kinds of inputs it is given, or the reason why there is none."""

from typing import Any

from amidmath.arrays import checks
from amidmath.inputs.hidden import Hidden
from amidmath.inputs.shard import Shard
from amidmath.inputs.top_k import TopK
from amidmath.pairs.call import Batch, Call, RowLoss
from amidmath.pairs.chunked import chunked_call
from amidmath.pairs.lists import lists_call
from amidmath.pairs.logits import logits_call
from amidmath.pairs.shards import shards_call


def call_of(
    loss: RowLoss, student: Any, teacher: Any, batch: Batch, overwrite: bool = False
) -> Call:
    """The call of a loss, by the kinds of student and teacher.

    Raises:
        TypeError: kinds that do not go together, or arguments of a wrong type.
        ValueError: shapes, devices or numbers that do not fit; a backend that there is not.
    """
    checks.backend(batch.backend)
    if isinstance(student, TopK):
        raise TypeError(
            "student must be logits, am.Hidden or am.Shard, got an am.TopK: lists have no "
            "gradient, and are for the teacher"
        )
    if isinstance(student, Shard) or isinstance(teacher, Shard):
        if not (isinstance(student, Shard) and isinstance(teacher, Shard)):
            raise TypeError(
                "student and teacher must both be an am.Shard of one vocabulary, got "
                f"{_kind(student)} and {_kind(teacher)}: of hidden states multiply out this "
                "rank's part of the head; of lists and whole logits take this rank's part"
            )
        _only_backend(batch, "a loss of an am.Shard")
        return shards_call(loss, student, teacher, batch)
    if isinstance(student, Hidden) or isinstance(teacher, Hidden):
        _only_backend(batch, "a loss of an am.Hidden")
        return chunked_call(loss, student, teacher, batch)
    if batch.labels is not None:
        _only_backend(batch, "a loss with labels")
        return chunked_call(loss, student, teacher, batch)
    if isinstance(teacher, TopK):
        return lists_call(loss, student, teacher, batch)
    return logits_call(loss, student, teacher, batch, overwrite)


def _only_backend(batch: Batch, what: str) -> None:
    if batch.backend is not None:
        raise ValueError(
            f"{what} has one backend, None, got {batch.backend!r}; a loss of logits has others"
        )


def _kind(value: Any) -> str:
    """The kind of a side, in words."""
    if isinstance(value, (Hidden, Shard, TopK)):
        return f"an am.{type(value).__name__}"
    return (
        f"{type(value).__name__} of shape {tuple(value.shape)}"
        if checks.is_array(value)
        else (f"{type(value).__name__}: {checks.shortened(value)}")
    )
