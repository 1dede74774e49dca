"""Rows that the last held-out batch repeats are counted once, joined into one sequence or not."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from amidmath.integrations.torch_loop.devices.shares import (
    LENGTHS,
    WithLengths,
    ignore_repeated_rows,
)

ROWS = [{"input_ids": [10 * row + 1] * (2 + row)} for row in range(4)]


def accelerator(process: int, remainder: int, is_end: bool = True) -> Any:
    state = SimpleNamespace(end_of_dataloader=is_end, remainder=remainder)
    return SimpleNamespace(gradient_state=state, process_index=process)


@pytest.mark.parametrize("padding_free", [False, True])
@pytest.mark.parametrize(
    ("process", "remainder", "is_end", "kept"),
    [(0, 5, True, 4), (1, 5, True, 1), (1, 4, True, 0), (0, 3, True, 3), (1, 1, False, 4)],
)
def test_only_the_repeated_rows_lose_their_labels(
    padding_free: bool, process: int, remainder: int, is_end: bool, kept: int
) -> None:
    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)
    batch = WithLengths(collator)(ROWS)
    assert batch[LENGTHS].tolist() == [2, 3, 4, 5]
    lengths = batch[LENGTHS].tolist() if padding_free else None
    labels: torch.Tensor = batch["labels"]
    before = labels.clone()
    ignore_repeated_rows(labels, accelerator(process, remainder, is_end), lengths)
    first = torch.isin(batch["input_ids"], torch.tensor([10 * row + 1 for row in range(kept)]))
    torch.testing.assert_close(labels, before.masked_fill(~first, -100), rtol=0, atol=0)
