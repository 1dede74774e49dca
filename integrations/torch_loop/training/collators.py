"""Batches that keep what no model takes: the numbers of their rows, and who wrote them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Carrying:
    """A collator whose batches have some columns of numbers that it need not know, each (B,).

    Args:
        collator: of examples without those columns.
        columns: their names; of which those are carried that all examples have.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        columns: Sequence[str],
    ) -> None:
        self.collator, self.columns = collator, tuple(columns)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The collator's batch and the columns."""
        plain = [{k: v for k, v in e.items() if k not in self.columns} for e in examples]
        batch = dict(self.collator(plain))
        for name in self.columns:
            if all(name in example for example in examples):
                batch[name] = torch.tensor([int(example[name]) for example in examples])
        return batch
