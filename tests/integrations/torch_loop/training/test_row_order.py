"""The order of rows in the torch loop: that of the JAX loop, on any number of processes."""

import itertools
from typing import Any

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from amidmath.integrations.common.rows.batches import Batches
from amidmath.integrations.torch_loop.training.row_order import RowOrder

COUNT, SIZE, SEED = 22, 3, 5


def of_jax(rows: int, epoch: int) -> list[list[int]]:
    """The rows of every step of an epoch, of so many rows a step."""
    table = Dataset.from_dict({"input_ids": [[n, n] for n in range(COUNT)]})
    batches = Batches(
        table.add_column("labels", table["input_ids"][:]), batch_size=rows, pad=0, seed=SEED
    )
    first = epoch * batches.steps_per_epoch
    steps = range(first, first + batches.steps_per_epoch)
    found = [batches.step(number)["row"].ravel().tolist() for number in steps]
    return [[row for row in step if row >= 0] for step in found]


def loader(processes: int, index: int) -> Any:
    plain: Any = DataLoader(list(range(COUNT)), batch_size=SIZE, sampler=RowOrder(COUNT, SEED))  # type: ignore[arg-type]
    return prepare_data_loader(
        plain, num_processes=processes, process_index=index, put_on_device=False
    )


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_step_has_the_rows_of_the_jax_loop(processes: int) -> None:
    loaders = [loader(processes, index) for index in range(processes)]
    seen = []
    for epoch in range(3):
        expected = of_jax(SIZE * processes, epoch)
        batches = []
        for one in loaders:
            one.set_epoch(epoch)
            batches.append([batch.tolist() for batch in one])
        steps = [
            list(itertools.chain(*parts)) for parts in itertools.zip_longest(*batches, fillvalue=[])
        ]
        assert steps[:-1] == expected[:-1]
        # accelerate fills the last one up with the first rows.
        assert steps[-1][: len(expected[-1])] == expected[-1]
        assert sorted(itertools.chain(*expected)) == list(range(COUNT))
        seen.append(expected)
    assert seen[0] != seen[1] != seen[2]


def test_going_on_within_an_epoch() -> None:
    whole = loader(1, 0)
    whole.set_epoch(2)
    expected = [batch.tolist() for batch in whole]
    rest = skip_first_batches(loader(1, 0), 4)
    rest.set_epoch(2)
    assert [batch.tolist() for batch in rest] == expected[4:]
