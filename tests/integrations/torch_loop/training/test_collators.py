"""A collator whose batches keep columns that it does not know."""

from typing import Any

import torch

from amidmath.integrations.torch_loop.training.collators import Carrying


def stacked(examples: list[dict[str, Any]]) -> dict[str, Any]:
    assert all(set(example) == {"input_ids"} for example in examples)
    return {"input_ids": torch.tensor([example["input_ids"] for example in examples])}


def test_columns_that_all_examples_have_are_carried() -> None:
    collate = Carrying(stacked, ("row", "source"))
    batch = collate([{"input_ids": [1, 2], "row": 7}, {"input_ids": [3, 4], "row": 5, "source": 1}])
    assert set(batch) == {"input_ids", "row"}
    assert batch["input_ids"].tolist() == [[1, 2], [3, 4]]
    assert batch["row"].tolist() == [7, 5]
