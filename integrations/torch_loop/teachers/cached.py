"""A teacher that is not there: its most probable tokens, cached by row of the prepared dataset."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

import amidmath as am
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.teacher_cache.cached_rows import CachedRows
from amidmath.integrations.common.teacher_cache.store import TopKStore
from amidmath.integrations.torch_loop.models.states import States, logits_of

T = TypeVar("T")

_CHUNK_BYTES = 2**26


class CachedTeacher:
    """Gives the cached lists of a batch's rows.

    Args:
        rows: the cache.
    """

    knows_new_rows = False
    model: torch.nn.Module | None = None

    def __init__(self, rows: CachedRows) -> None:
        self.rows = rows

    @property
    def store(self) -> TopKStore:
        """The cache of the training rows."""
        return self.rows.store

    def give(self, batch: Mapping[str, Any], then: Callable[[am.TopK], T]) -> T:
        """``then`` of the lists for a batch.

        Args:
            batch: with ``input_ids`` (B, L) and ``row`` (B,), or of one flat sequence (1, L) that
                has the rows one after the other, as padding-free collators make it.
            then: what to do with the lists, (B, L, k). A position that is not cached has NaN.

        Raises:
            InputError: a batch without row numbers, or of rows that are not those of the cache.
        """
        if ROW not in batch:
            raise InputError(
                "the batch has no row numbers, so it is not of the cached dataset: generated text "
                "needs a teacher in memory (--teacher_model_name_or_path without --teacher_cache)"
            )
        ids = batch["input_ids"]
        top = self.rows.lists((ids.shape[0], ids.shape[1]), batch[ROW].tolist())
        tensors = (torch.from_numpy(array) for array in top)
        return then(am.TopK(*(array.to(ids.device, non_blocking=True) for array in tensors)))

    def describe(self) -> str:
        """The teacher in one line."""
        return self.rows.describe()


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
    vocabulary = states.vocabulary
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
