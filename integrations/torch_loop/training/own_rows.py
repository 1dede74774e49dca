"""SFTTrainer with the rows of both loops: one reader, one order, and columns for the loss."""

import copy
from collections.abc import Mapping
from typing import Any, cast

from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig

from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.rows.from_dataset import whole_rows
from amidmath.integrations.common.rows.settings import RowSettings
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.row_order import OrderedTrainer

NOT_FOR_MODELS = ("row", "source")
"""The entries of a batch that are for the loss or the teacher, and no model takes."""


class OwnRowsTrainer(OrderedTrainer):
    """Prepares rows as the JAX loop and the caches do, and keeps ``NOT_FOR_MODELS`` in batches.

    Attributes:
        recipe: the loss, which may want rows of pairs.
        sizes: how many tokens each model reads, by its role.
        max_length: of rows, as the configuration had it.
    """

    recipe: Recipe
    sizes: Mapping[str, int]
    max_length: int | None

    @property
    def student(self) -> PreTrainedModel:
        """The model that trains."""
        return cast("PreTrainedModel", self.model)

    @property
    def settings(self) -> AMiDConfig:
        """The configuration."""
        return cast("AMiDConfig", self.args)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of student and teacher."""
        return cast("PreTrainedTokenizerBase", self.processing_class)

    @property
    def train_rows(self) -> Dataset:
        """The prepared training rows."""
        return cast("Dataset", self.train_dataset)

    @property
    def eval_rows(self) -> Dataset:
        """The prepared held-out rows."""
        return cast("Dataset", self.eval_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast("list[str]", self._signature_columns)
        columns += [name for name in NOT_FOR_MODELS if name not in columns]

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """Rows as the JAX loop and the caches make them, which SFTTrainer then cuts or packs.

        SFTTrainer itself prepares what they do not know: streams, and rows with a formatting
        function.
        """
        args = copy.copy(args)
        args.max_length = self.max_length
        if isinstance(dataset, Dataset) and formatting_func is None:
            cut = packing and args.packing_strategy in ("wrapped", "bfd_split")
            with PartialState().main_process_first():  # the others find what it has made
                dataset = whole_rows(
                    dataset,
                    processing_class,
                    cast("RowSettings", args),
                    None if cut else args.max_length,
                    name=dataset_name,
                    pairs="any" not in self.recipe.method.sources,
                    joined=packing or args.padding_free,
                    say=PartialState().print,  # the accelerator comes later
                    sizes=self.sizes,
                    template=self.chat_template,
                )
        return super()._prepare_dataset(
            dataset, processing_class, args, packing, formatting_func, dataset_name
        )
