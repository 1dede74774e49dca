"""TRL's SFTTrainer with a distillation loss in place of cross-entropy."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState
from trl import SFTConfig

from amidmath.integrations.common.cli.memory import EVALUATION, within_memory
from amidmath.integrations.common.errors import TrainingError
from amidmath.integrations.common.evaluation.task_scores import TaskScores, with_prefix
from amidmath.integrations.common.policies.base import Source
from amidmath.integrations.common.recipe.supports import check_finite
from amidmath.integrations.common.rows.from_dataset import whole_rows
from amidmath.integrations.common.rows.settings import RowSettings
from amidmath.integrations.common.run.checkpoints import ExtraState
from amidmath.integrations.common.text.vocabularies import compared_first
from amidmath.integrations.torch_loop.devices.processes import (
    LENGTHS,
    WithLengths,
    ignore_repeated_rows,
    keep_loss_wide,
    prepare_frozen,
    reshard,
    summed,
)
from amidmath.integrations.torch_loop.evaluation.task_scores import student_scores
from amidmath.integrations.torch_loop.loss.objective import (
    Batch,
    recipe_loss,
    sampled_statistics,
)
from amidmath.integrations.torch_loop.loss.outside_mass import OutsideMass
from amidmath.integrations.torch_loop.models.model_files import (
    check_context,
    checkpoints_as_it_can,
    embeddings_of,
    logits_of_model,
)
from amidmath.integrations.torch_loop.models.states import States, expose_states
from amidmath.integrations.torch_loop.models.trials import (
    answers_together,
    check_adapter,
    check_causal,
    check_packing,
    check_padded,
)
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.cached import CachedTeacher
from amidmath.integrations.torch_loop.teachers.teachers import (
    AdapterBaseTeacher,
    ModelTeacher,
    Reference,
    Teacher,
    freeze,
)
from amidmath.integrations.torch_loop.training.checkpoints import WholeCheckpoints
from amidmath.integrations.torch_loop.training.collators import Carrying
from amidmath.integrations.torch_loop.training.rollouts import Rollouts
from amidmath.integrations.torch_loop.training.row_order import OrderedTrainer
from amidmath.integrations.torch_loop.training.sft_inputs import (
    check_padding,
    cut_here,
    in_trl_words,
    own_template,
)

# What of a batch is for the loss or the teacher, and no model takes.
_NOT_FOR_MODELS = ("row", "source")


class AMiDTrainer(WholeCheckpoints, OrderedTrainer):
    """Trains the student on a distillation loss at every labelled position.

    The loss is computed from hidden states, the logits never whole. All else is SFTTrainer's:
    dataset formats and completion masks, packing, PEFT, accumulation, logging.

    Args:
        model: the student, as for SFTTrainer.
        teacher: a causal language model in memory, which is put in evaluation mode and stops
            training; "base" for the student's own base model, with ``peft_config``; any other
            :class:`Teacher`; or what makes one of the trainer, once its rows are prepared.
        args: the configuration, loss and data policy included.
        task_scores: a task on which the student's answers are scored at every evaluation.
        sizes: how many tokens of rows each model reads, by its role; by default student and
            teacher as many as they have embeddings for.
        **kwargs: for SFTTrainer.

    Raises:
        InputError: what does not fit together: vocabularies, contexts, rows whose prompt leaves no
            room for an answer, a data policy that needs prompts where there are none.
    """

    _tag_names = ["amid", "distillation"]  # noqa: RUF012
    _name = "AMiD"

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: "PreTrainedModel | Teacher | str | Callable[[AMiDTrainer], Teacher]",
        args: AMiDConfig,
        task_scores: TaskScores | None = None,
        sizes: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        """Check that teacher and student fit, and prepare the data."""
        self.recipe = args.recipe()
        self.policy = args.data_policy()
        self.vocab, self.label_weight = args.vocab, args.label_weight
        self.task_scores = task_scores
        contexts = {"student": model}
        if isinstance(teacher, PreTrainedModel):
            contexts["teacher"] = teacher
        check_context(int(args.max_length or 0), **contexts)
        self.keeps_activations = checkpoints_as_it_can(args, model)
        own = {role: embeddings_of(model) for role, model in contexts.items()}
        self.sizes = own if sizes is None else sizes
        if args.assistant_only_loss:
            for given in ("train_dataset", "eval_dataset"):
                kwargs[given] = in_trl_words(kwargs.get(given))
        self.max_length = args.max_length
        with own_template(args, model, kwargs.get("processing_class")), cut_here(args):
            super().__init__(model=model, args=args, **kwargs)
        check_padding(self.tokenizer, self.sizes)
        self.plain_collator = self.data_collator
        joined = getattr(self.plain_collator, "padding_free", False)
        collator = WithLengths(self.plain_collator) if joined else self.plain_collator
        self.data_collator = Carrying(collator, _NOT_FOR_MODELS)
        inner = self.student
        adapted: Any = inner if _has_adapter(inner) else None
        inner = inner if adapted is None else adapted.get_base_model()
        expose_states(inner)
        if adapted is not None:
            check_adapter(adapted)
        asked_by = "--packing" if args.packing else "--padding_free"
        self._joined_by = asked_by if joined else None
        self._check_model("student", inner)
        keep_loss_wide(self.accelerator)
        self.teacher = self._prepared_teacher(teacher)
        self.rollouts = Rollouts(self)
        self._step_sums: torch.Tensor | float = 0.0
        self._statistics: torch.Tensor | None = None
        self._outside = None if self.vocab == "strict" else OutsideMass(self.teacher)
        self.tokens = self._compared_tokens()
        self._held_out: torch.Tensor | float = 0.0  # sum of the losses, and of how many tokens
        self.add_callback(_AfterStep(self))

    def _prepared_teacher(self, teacher: Any) -> Teacher:
        if teacher == "base":
            return AdapterBaseTeacher(lambda: cast("Any", self.model_wrapped), self.student)
        if not isinstance(teacher, PreTrainedModel):
            return cast("Teacher", teacher(self) if callable(teacher) else teacher)
        name = str(teacher.config.name_or_path)
        self._check_model("teacher", freeze(teacher))
        return ModelTeacher(prepare_frozen(teacher, self.accelerator), name)

    def _check_model(self, role: str, model: PreTrainedModel) -> None:
        """Raise InputError where a model cannot do what the run asks of it; it is tried out."""
        check_causal(role, model)
        if self._joined_by is not None:
            check_packing(role, model, self._joined_by)
        elif max(self.args.per_device_train_batch_size, self.args.per_device_eval_batch_size) > 1:
            check_padded(role, model)
        sources = self.policy.sources
        answers = {"student": {Source.STUDENT, Source.BUFFER}, "teacher": {Source.TEACHER}}
        scored = role == "student" and self.task_scores is not None
        if scored or answers[role] & sources:
            answers_together(model)

    def _compared_tokens(self) -> int | None:
        """How many first tokens the loss is over; raises InputError where it would be infinite."""
        ours = logits_of_model(self.student)
        if isinstance(self.teacher, CachedTeacher):
            return self.teacher.rows.tokens
        if not isinstance(self.teacher, ModelTeacher):
            return None
        theirs = logits_of_model(self.teacher.model)
        check_finite(self.recipe, self.vocab, ours, theirs)
        return compared_first(self.vocab, ours, theirs)

    @property
    def student(self) -> PreTrainedModel:
        """The model that trains."""
        return cast("PreTrainedModel", self.model)

    @property
    def steps_to_train(self) -> int:
        """How many optimiser steps the run has."""
        args = self.args
        if args.max_steps > 0:
            return args.max_steps
        updates = math.ceil(len(self.get_train_dataloader()) / args.gradient_accumulation_steps)
        return math.ceil(updates * args.num_train_epochs)

    @property
    def is_sharded(self) -> bool:
        """Whether an engine shares weights out, so that the student runs only within train()."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

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

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The distillation loss of a batch, over the positions whose next token has a label."""
        labels = inputs.pop("labels")
        inputs.pop(LENGTHS, None)
        denominator = None
        if num_items_in_batch is not None:  # 0 where no token of any batch counts
            denominator = torch.as_tensor(num_items_in_batch).clamp(min=1)
        batch = Batch(
            labels,
            denominator,
            self.vocab,
            self.label_weight,
            inputs.get("source"),
            float(self.recipe.params["temperature"]),
            self.tokens,
        )
        inputs["use_cache"] = False
        to_model = {k: v for k, v in inputs.items() if k not in _NOT_FOR_MODELS}

        def with_reference(reference: Reference) -> torch.Tensor:
            loss: torch.Tensor = model(
                **to_model, with_states=lambda states: self._loss(states, reference, batch)
            )
            return loss

        loss = self.teacher.give(inputs, with_reference)
        mode = "train" if self.student.training else "eval"
        if mode == "eval":
            count = batch.mask.sum()
            over = count if denominator is None else denominator
            self._held_out = self._held_out + torch.stack([loss.detach() * over, count]).double()
        if mode == "train":
            self._step_sums = self._step_sums + loss.detach()
            tokens: Any = self.accelerator.gather_for_metrics(count_tokens(inputs, labels))
            self._total_train_tokens += int(tokens.sum())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The denominator counts every process's tokens; DDP then averages the gradients.
            loss = loss * self.accelerator.num_processes
        return (loss, None) if return_outputs else loss

    def _loss(self, student: States, reference: Reference, batch: Batch) -> torch.Tensor:
        """Called inside of the student's forward pass."""
        step, total = self.state.global_step, max(1, self.state.max_steps)
        if not self.student.training or self._looks():
            found = sampled_statistics(student, reference, batch)
            self._statistics = found if self._statistics is None else self._statistics + found
            if self._outside is not None:
                mode = "train" if self.student.training else "eval"
                self._outside.look(mode, student, reference, batch)
        return recipe_loss(self.recipe, step, total, student, reference, batch)

    def _looks(self) -> bool:
        """Whether KL and overlap are wanted of this step: for a schedule, or for the log."""
        if self.recipe.schedules.needs_overlap:
            return True
        step = self.state.global_step + 1
        every = int(self.state.logging_steps or 0)
        first = step == 1 and self.args.logging_first_step
        return first or (every > 0 and step % every == 0)

    def finish_step(self) -> None:
        """Tell the schedules of an optimiser step, and the log of their values."""
        step, total = self.state.global_step - 1, self.state.max_steps
        schedules = self.recipe.schedules
        for name, value in schedules.values(step, total).items():
            self._metrics["train"][name] = [value]
        statistics: dict[str, float] = {}
        if self._statistics is not None:
            kl, overlap, count = summed(self._statistics).tolist()
            statistics["overlap"] = overlap / count if count else math.nan
            if count:
                self._metrics["train"]["kl"] = [kl / count]
                self._metrics["train"]["overlap"] = [statistics["overlap"]]
        if self._outside is not None:
            for name, value in self._outside.take("train").items():
                self._metrics["train"][name] = [value]
        if schedules.observes:
            statistics["loss"] = float(summed(torch.as_tensor(self._step_sums)))
            if not self.args.average_tokens_across_devices:
                statistics["loss"] /= self.accelerator.num_processes
            schedules.observe(statistics)
        self._step_sums, self._statistics = 0.0, None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The micro-batches of an optimiser step, from where the data policy says."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, items
        step, total = self.state.global_step, self.state.max_steps
        source = self.policy.choose(step, total, self.rollouts.buffer)
        batches = self.rollouts.batches(source, batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm; TrainingError, before the weights change, if it is not finite.

        Under float16 the gradient scaler sees to such steps.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not self.args.fp16 and not math.isfinite(float(norm)):
            step = self.state.global_step + 1
            raise TrainingError(
                f"step {step}: the gradient's norm is {float(norm)}, so the step was not made and "
                f"nothing was saved of it; the student is that of step {step - 1}. A lower "
                "--learning_rate, or an --alpha below 1 (whose assistant covers all tokens that "
                "teacher or student do), helps against it; earlier checkpoints are kept"
            )
        return norm

    def extra_states(self) -> dict[str, ExtraState]:
        """Schedules, data policy, replay buffer and random numbers, beside the logged figures."""
        return super().extra_states() | {
            "schedules": self.recipe.schedules,
            "policy": self.policy,
            "rollouts": self.rollouts,
        }

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Any, Any, Any]:
        """A held-out batch, its rows counted once."""
        lengths = inputs.pop(LENGTHS, None)
        ignore_repeated_rows(
            inputs["labels"], self.accelerator, None if lengths is None else lengths.tolist()
        )
        step: Any = super().prediction_step(model, inputs, *args, **kwargs)
        return cast("tuple[Any, Any, Any]", step)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with the mean loss over all tokens, whatever the batches and processes."""
        self._held_out = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        of_training, self._statistics = self._statistics, torch.zeros(3, device=self.args.device)
        with within_memory("evaluating", EVALUATION):
            output = super().evaluation_loop(*args, **kwargs)
        reshard(self.student)
        prefix = kwargs.get("metric_key_prefix", "eval")
        total, count = summed(self._held_out).tolist()
        kl, overlap, looked = summed(self._statistics).tolist()
        metrics = cast("dict[str, float]", output.metrics)
        metrics[f"{prefix}_loss"] = total / count if count else math.nan
        if looked:
            metrics |= {f"{prefix}_kl": kl / looked, f"{prefix}_overlap": overlap / looked}
        self._statistics = of_training
        if self._outside is not None:
            metrics |= with_prefix(prefix, self._outside.take("eval"))
        if self.task_scores is not None:
            metrics |= with_prefix(prefix, student_scores(self.task_scores, self))
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """SFTTrainer's, and the data policy hears of the loss."""
        metrics = super().evaluate(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if f"{prefix}_loss" in metrics:
            self.policy.observe_evaluation(metrics[f"{prefix}_loss"])
        return metrics

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast("list[str]", self._signature_columns)
        columns += [name for name in _NOT_FOR_MODELS if name not in columns]

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


class _AfterStep(TrainerCallback):
    """Calls the trainer's ``finish_step`` before an optimiser step is logged and saved."""

    def __init__(self, trainer: AMiDTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """See the class."""
        self.trainer.finish_step()


def count_tokens(inputs: dict[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """How many tokens a batch has, padding left out."""
    mask = inputs.get("attention_mask")
    return torch.tensor(labels.numel(), device=labels.device) if mask is None else mask.sum()


def _has_adapter(model: Any) -> bool:
    return hasattr(model, "get_base_model")
