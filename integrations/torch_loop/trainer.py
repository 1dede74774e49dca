"""TRL's SFTTrainer with the AMiD loss in place of cross-entropy."""

import copy
import math
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.torch_loop.arguments import AMiDConfig
from amidmath.integrations.torch_loop.models import check_context, check_vocabularies, freeze


class AMiDTrainer(SFTTrainer):
    """Trains the student on D between teacher, student and assistant at every labelled position.

    All else is SFTTrainer's: dataset formats and completion masks, packing, PEFT, accumulation,
    checkpoints, logging.

    Args:
        model: the student, as for SFTTrainer.
        teacher: a causal language model with the student's vocabulary; it is put in evaluation
            mode and its parameters stop training.
        args: the configuration, loss included.
        **kwargs: for SFTTrainer.

    Raises:
        InputError: vocabularies of different size, a context that is too short, rows whose prompt
            leaves no room for an answer.
    """

    _tag_names = ["amid", "distillation"]  # noqa: RUF012
    _name = "AMiD"

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        args: AMiDConfig,
        **kwargs: Any,
    ) -> None:
        """Check that teacher and student fit, and prepare the data."""
        check_vocabularies(model, teacher)
        check_context(int(args.max_length or 0), student=model, teacher=teacher)
        self.drop_unlearnable_rows = args.drop_unlearnable_rows
        super().__init__(model=model, args=args, **kwargs)
        self.distillation_loss = args.loss()
        prepared = self.accelerator.prepare_model(freeze(teacher), evaluation_mode=True)
        self.teacher = cast("PreTrainedModel", prepared)

    @property
    def student(self) -> PreTrainedModel:
        """The model that trains."""
        return cast("PreTrainedModel", self.model)

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

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The distillation loss of a batch, over the positions whose next token has a label."""
        labels = inputs.pop("labels")
        inputs["use_cache"] = False
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits
        outputs = model(**inputs)
        denominator = None
        if num_items_in_batch is not None:  # 0 where no token of any batch counts
            denominator = torch.as_tensor(num_items_in_batch).clamp(min=1)
        loss = self.distillation_loss(
            outputs.logits, teacher_logits, mask=next_token_mask(labels), denominator=denominator
        )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The denominator counts every process's tokens; DDP then averages the gradients.
            loss = loss * self.accelerator.num_processes

        mode = "train" if self.student.training else "eval"
        if mode == "train":
            tokens: Any = self.accelerator.gather_for_metrics(count_tokens(inputs, labels))
            self._total_train_tokens += int(tokens.sum())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return (loss, outputs) if return_outputs else loss

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: SFTConfig,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """SFTTrainer's preparation, in two steps so that what it would drop is seen first."""
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        rows = super()._prepare_dataset(
            dataset, processing_class, whole, False, formatting_func, dataset_name
        )
        if isinstance(rows, Dataset):
            cut = packing and args.packing_strategy in ("wrapped", "bfd_split")
            rows = self._learnable(rows, None if cut else args.max_length, dataset_name)
        return super()._prepare_dataset(rows, processing_class, args, packing, None, dataset_name)

    def _learnable(self, rows: Dataset, limit: int | None, name: str) -> Dataset:
        """The rows with a token to learn among the first ``limit``; InputError on the others."""
        first_targets = [_first_target(labels) for labels in rows["labels"]]
        end = math.inf if limit is None else limit
        learnable = [i for i, first in enumerate(first_targets) if first < end]
        if len(learnable) == len(rows):
            return rows
        lost, first = next((i, f) for i, f in enumerate(first_targets) if not f < end)
        if first == math.inf:
            reason = "it has no token to learn (no answer, or all of it masked)"
            advice = "complete or remove such rows"
        else:
            reason = f"its prompt has {first} tokens, --max_length {limit} leaves no room to answer"
            advice = "raise --max_length (within the models' context) or shorten the prompts"
        message = (
            f"{len(rows) - len(learnable)} of {len(rows)} {name} rows cannot be learned from, "
            f"first row {lost}: {reason}"
        )
        if not self.drop_unlearnable_rows:
            raise InputError(f"{message}; {advice}, or give --drop_unlearnable_rows")
        if not learnable:
            raise InputError(f"{message}; nothing would be left: {advice}")
        PartialState().print(f"Left out: {message}.")  # the accelerator comes later
        return rows.select(learnable)


def next_token_mask(labels: torch.Tensor) -> torch.Tensor:
    """Which positions predict a labelled token: True at t where the label of t + 1 counts."""
    keep = torch.zeros_like(labels, dtype=torch.bool)
    keep[..., :-1] = labels[..., 1:] != -100
    return keep


def count_tokens(inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """How many tokens a batch has, padding left out."""
    mask = inputs.get("attention_mask")
    return torch.tensor(labels.numel(), device=labels.device) if mask is None else mask.sum()


def _first_target(labels: list[int]) -> float:
    """Index of the first token that counts, inf if none; the very first is never predicted."""
    return next((i for i, label in enumerate(labels) if i > 0 and label != -100), math.inf)
