"""TRL's SFTTrainer with a distillation loss in place of cross-entropy."""

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import TrainerControl, TrainerState

from amidmath.integrations.common.cli.memory import EVALUATION, within_memory
from amidmath.integrations.common.errors import not_finite
from amidmath.integrations.common.run.checkpoints import ExtraState
from amidmath.integrations.common.tasks.scores import TaskScores, with_prefix
from amidmath.integrations.torch_loop.devices.engines import (
    keep_loss_wide,
    prepare_frozen,
    reshard,
)
from amidmath.integrations.torch_loop.devices.shares import (
    LENGTHS,
    WithLengths,
    ignore_repeated_rows,
    summed,
)
from amidmath.integrations.torch_loop.evaluation.task_scores import student_scores
from amidmath.integrations.torch_loop.loss.batch import Batch, count_tokens
from amidmath.integrations.torch_loop.loss.objective import recipe_loss
from amidmath.integrations.torch_loop.models.model_files import (
    check_context,
    checkpoints_as_it_can,
    embeddings_of,
    logits_of_model,
)
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.teachers import (
    AdapterBaseTeacher,
    ModelTeacher,
    Reference,
    Teacher,
    compared_with,
    freeze,
)
from amidmath.integrations.torch_loop.training.checkpoints import WholeCheckpoints
from amidmath.integrations.torch_loop.training.collators import Carrying
from amidmath.integrations.torch_loop.training.demands import Demands
from amidmath.integrations.torch_loop.training.own_rows import NOT_FOR_MODELS, OwnRowsTrainer
from amidmath.integrations.torch_loop.training.rollouts import Rollouts
from amidmath.integrations.torch_loop.training.sft_inputs import (
    check_padding,
    cut_here,
    in_trl_words,
    own_template,
)
from amidmath.integrations.torch_loop.training.statistics import EVAL, TRAIN, Statistics


class AMiDTrainer(WholeCheckpoints, OwnRowsTrainer):
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
        self.data_collator = Carrying(collator, NOT_FOR_MODELS)
        demands = Demands.of(args, self.policy, joined=joined, scored=task_scores is not None)
        demands.check_student(self.student)
        keep_loss_wide(self.accelerator)
        self.teacher = self._prepared_teacher(teacher, demands)
        self.rollouts = Rollouts(self)
        self._step_sums: torch.Tensor | float = 0.0
        self._statistics = Statistics(self.teacher, self.vocab)
        ours = logits_of_model(self.student)
        self.tokens = compared_with(self.teacher, ours, self.vocab, self.recipe)
        self.add_callback(_AfterStep(self))

    def _prepared_teacher(self, teacher: Any, demands: Demands) -> Teacher:
        if teacher == "base":
            return AdapterBaseTeacher(lambda: cast("Any", self.model_wrapped), self.student)
        if not isinstance(teacher, PreTrainedModel):
            return cast("Teacher", teacher(self) if callable(teacher) else teacher)
        name = str(teacher.config.name_or_path)
        demands.check("teacher", freeze(teacher))
        return ModelTeacher(prepare_frozen(teacher, self.accelerator), name)

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
        to_model = {k: v for k, v in inputs.items() if k not in NOT_FOR_MODELS}

        def with_reference(reference: Reference) -> torch.Tensor:
            loss: torch.Tensor = model(
                **to_model, with_states=lambda states: self._loss(states, reference, batch)
            )
            return loss

        loss = self.teacher.give(inputs, with_reference)
        mode = TRAIN if self.student.training else EVAL
        if mode == EVAL:
            count = batch.mask.sum()
            over = count if denominator is None else denominator
            self._statistics.add_held_out(loss.detach() * over, count)
        if mode == TRAIN:
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
            mode = TRAIN if self.student.training else EVAL
            self._statistics.look(mode, student, reference, batch)
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
        figures, overlap = self._statistics.of_step()
        for name, value in {**schedules.values(step, total), **figures}.items():
            self._metrics[TRAIN][name] = [value]
        if schedules.observes:
            observed = {} if overlap is None else {"overlap": overlap}
            observed["loss"] = float(summed(torch.as_tensor(self._step_sums)))
            if not self.args.average_tokens_across_devices:
                observed["loss"] /= self.accelerator.num_processes
            schedules.observe(observed)
        self._step_sums = 0.0

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
            raise not_finite(self.state.global_step + 1, float(norm))
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
        self._statistics.begin_evaluation(self.args.device)
        with within_memory("evaluating", EVALUATION):
            output = super().evaluation_loop(*args, **kwargs)
        reshard(self.student)
        prefix = kwargs.get("metric_key_prefix", "eval")
        metrics = cast("dict[str, float]", output.metrics)
        metrics |= self._statistics.of_evaluation(prefix)
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


class _AfterStep(TrainerCallback):
    """Calls the trainer's ``finish_step`` before an optimiser step is logged and saved."""

    def __init__(self, trainer: AMiDTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the trainer."""
        self.trainer.finish_step()
