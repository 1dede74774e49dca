"""The rows in the order that both loops have, as a sampler of torch's."""

from collections.abc import Iterator
from typing import Any, cast

from datasets import Dataset
from torch.utils.data import Sampler
from trl import SFTTrainer

from amidmath.integrations.common.rows.order import order_of


class RowOrder(Sampler[int]):
    """The numbers of the rows, in another order in every epoch.

    Args:
        count: how many rows there are.
        seed: of the run.
    """

    def __init__(self, count: int, seed: int) -> None:
        """Begin with the first epoch."""
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch is next; accelerate tells."""
        self.epoch = epoch

    def __len__(self) -> int:
        """How many rows there are."""
        return self.count

    def __iter__(self) -> Iterator[int]:
        """The epoch's order, the same on every process."""
        yield from order_of(self.count, self.seed, self.epoch).tolist()


class OrderedTrainer(SFTTrainer):
    """SFTTrainer with the order of rows of both loops."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "random" or not isinstance(rows, Dataset):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return RowOrder(len(cast("Dataset", rows)), int(seed))
