"""Batches of sequences that the student or the teacher generates for the dataset's prompts."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.models.utils import unwrap_model_for_generation

from amidmath.integrations.common.cli.memory import GENERATION, within_memory
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.policies.base import Policy, Source
from amidmath.integrations.common.policies.replay_buffer import Example
from amidmath.integrations.common.policies.rollout_rows import Memory, check_policy, prompts_of
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.rows.marks import STUDENT_ROWS
from amidmath.integrations.torch_loop.models.generation import generate
from amidmath.integrations.torch_loop.models.model_files import context_of, logits_of_model
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher, Teacher

_BY_STUDENT = {Source.STUDENT, Source.BUFFER}
_JOINING = ("packing", "padding_free")


class Trainer(Protocol):
    """The part of a trainer that rollouts need."""

    recipe: Recipe
    policy: Policy
    teacher: Teacher
    data_collator: Any
    model_wrapped: Any
    accelerator: Any

    @property
    def settings(self) -> AMiDConfig: ...  # noqa: D102
    @property
    def student(self) -> PreTrainedModel: ...  # noqa: D102
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...  # noqa: D102
    @property
    def train_rows(self) -> Dataset: ...  # noqa: D102


class Rollouts(Memory):
    """Puts generated or remembered completions in place of the dataset's.

    Args:
        trainer: whose student, teacher and collator are used.

    Raises:
        InputError: the data policy generates, and there are no prompts, rows are packed, the
            teacher cannot generate or judge new sequences, or the buffer is smaller than a step.
    """

    def __init__(self, trainer: Trainer) -> None:
        """Check that the policy can be followed."""
        self.trainer = trainer
        self.tagged = "any" not in trainer.recipe.method.sources
        args = trainer.settings
        super().__init__(args.replay_buffer(), [args.seed, args.process_index])
        self.generated_tokens = 0
        policy, teacher = trainer.policy, trainer.teacher
        check_policy(
            policy,
            trainer.train_rows,
            joined_by=[f"--{name}" for name in _JOINING if getattr(args, name)],
            teacher_knows_new_rows=teacher.knows_new_rows,
            capacity=self.buffer.capacity,
            step_rows=args.per_device_train_batch_size * args.gradient_accumulation_steps,
        )
        if Source.TEACHER in policy.sources and not isinstance(teacher, ModelTeacher):
            raise InputError(f"--policy {policy.name}: {teacher.describe()} does not generate")

    def batches(self, source: Source, batches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """An optimiser step's micro-batches, as many rows each, from the source."""
        if source is Source.DATASET:
            made = list(batches)
        else:
            prompts = [prompt for batch in batches for prompt in _prompts(batch)]
            examples = iter(self._examples(source, prompts))
            collate = self.trainer.data_collator
            made = [
                collate([_row(next(examples)) for _ in range(len(batch["input_ids"]))])
                for batch in batches
            ]
        if self.tagged:
            mark = STUDENT_ROWS if source in _BY_STUDENT else 0
            for batch in made:
                rows = torch.full((len(batch["input_ids"]),), mark)
                batch.setdefault("source", rows.to(batch["input_ids"].device))
        return made

    def _common(self) -> int | None:
        """How many first tokens both models have, where one has more: no other reads the rest."""
        teacher = self.trainer.teacher
        if not isinstance(teacher, ModelTeacher):
            return None
        models: tuple[Any, ...] = (self.trainer.student, teacher.model)
        sizes = {logits_of_model(model) for model in models}
        return min(sizes) if len(sizes) > 1 else None

    def _examples(self, source: Source, prompts: list[NDArray[np.int64]]) -> list[Example]:
        trainer = self.trainer
        if source is Source.BUFFER:
            return self.draw(len(prompts))
        args = trainer.settings
        of_teacher = source is Source.TEACHER
        model = trainer.teacher.model if of_teacher else trainer.model_wrapped
        length = int(args.max_length or 0)
        limit = min(length, context_of(trainer.student) or length)
        longest = max(len(prompt) for prompt in prompts)
        with (
            within_memory("generating", GENERATION),
            unwrap_model_for_generation(model, trainer.accelerator) as generator,
        ):
            completions = generate(
                generator,
                [torch.from_numpy(prompt) for prompt in prompts],
                tokenizer=trainer.tokenizer,
                max_new_tokens=min(args.max_new_tokens, limit - longest),
                temperature=args.generation_temperature,
                top_p=args.generation_top_p,
                batch_size=args.generation_batch_size or args.per_device_train_batch_size,
                tokens=self._common(),
            )
        self.generated_tokens += sum(len(completion) for completion in completions)
        examples = [
            Example(prompt, completion.numpy())
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        if Source.BUFFER in trainer.policy.sources:
            for example in examples:
                self.buffer.push(*example)
        return examples


def _prompts(batch: dict[str, torch.Tensor]) -> list[NDArray[np.int64]]:
    ids, labels, kept = (
        batch[name].cpu().numpy() for name in ("input_ids", "labels", "attention_mask")
    )
    return prompts_of(ids, labels, kept.astype(bool))


def _row(example: Example) -> dict[str, list[int]]:
    prompt, completion = example.prompt.tolist(), example.completion.tolist()
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
