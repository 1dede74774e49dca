"""A batch beside its states: labels, denominators, and which positions count."""

from dataclasses import dataclass
from typing import Any

import torch

from amidmath.integrations.common.rows.marks import NO_LABEL


@dataclass(frozen=True)
class Batch:
    """The parts of a batch that the loss needs beside states.

    Args:
        labels: shape (B, L), -100 where nothing is learned.
        denominator: what sums are divided by; None for the number of positions that count.
        vocab: "common" where a side's further tokens are one more token.
        label_weight: what cross-entropy with the labels adds; 0 for none.
        source: shape (B,), who wrote a row (``STUDENT_ROWS``); None for anyone.
        lists_at: the temperature of a teacher's lists.
        tokens: how many first tokens are compared, where all others are left out.
    """

    labels: torch.Tensor
    denominator: Any
    vocab: str = "strict"
    label_weight: float = 0.0
    source: torch.Tensor | None = None
    lists_at: float = 1.0
    tokens: int | None = None

    @property
    def mask(self) -> torch.Tensor:
        """Which positions count: True at t where the label of t + 1 does."""
        return next_token_mask(self.labels)

    @property
    def targets(self) -> torch.Tensor:
        """The label that each position predicts, -100 for none, or one that is left out."""
        found = next_token_targets(self.labels)
        return found if self.tokens is None else found.masked_fill(found >= self.tokens, NO_LABEL)


def next_token_mask(labels: torch.Tensor) -> torch.Tensor:
    """Which positions predict a labelled token: True at t where the label of t + 1 counts."""
    return next_token_targets(labels) != NO_LABEL


def next_token_targets(labels: torch.Tensor) -> torch.Tensor:
    """The label that each position predicts; -100 for none, as at the last position."""
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=NO_LABEL)


def count_tokens(inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """How many tokens a batch has, padding left out."""
    mask = inputs.get("attention_mask")
    return torch.tensor(labels.numel(), device=labels.device) if mask is None else mask.sum()
