"""Batches of sequences that the student or the teacher generates for the dataset's prompts."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from amidmath.integrations.common.policies.base import Policy, Source
from amidmath.integrations.common.policies.replay_buffer import Example
from amidmath.integrations.common.policies.rollout_rows import (
    Memory,
    check_policy,
    completed,
    longest_prompt,
    prompts_of,
)
from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.rows.batches import Batches
from amidmath.integrations.common.rows.marks import STUDENT_ROWS
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.generation import generate
from amidmath.integrations.jax_loop.settings.config import JaxConfig
from amidmath.integrations.jax_loop.teachers.teachers import InMemory, ModelTeacher, Teacher

_BY_STUDENT = {Source.STUDENT, Source.BUFFER}


class Trainer(Protocol):
    """The part of a trainer that rollouts need."""

    config: JaxConfig
    recipe: Recipe
    policy: Policy
    teacher: Teacher
    batches: Batches
    step: int

    @property
    def student(self) -> Decoder:
        """The student as it is now."""
        ...


class Rollouts(Memory):
    """Puts generated or remembered completions in place of the dataset's.

    What is sampled depends on the seed and the step alone. Every process has all completions, and
    the same buffer, so that the number of processes changes nothing.

    Args:
        trainer: whose student and teacher generate.
        rows: the training rows.
        end_tokens: which tokens end an answer.

    Raises:
        InputError: the data policy cannot be followed.
    """

    def __init__(self, trainer: Trainer, rows: Dataset, end_tokens: Sequence[int]) -> None:
        """Check that the policy can be followed."""
        config = trainer.config
        self.trainer, self.end_tokens = trainer, tuple(end_tokens)
        self.tagged = "any" not in trainer.recipe.method.sources
        super().__init__(config.replay_buffer(), [config.seed])
        check_policy(
            trainer.policy,
            rows,
            joined_by=["--packing"] if config.packing else [],
            teacher_knows_new_rows=isinstance(trainer.teacher, InMemory),
            capacity=config.buffer_capacity,
            step_rows=trainer.batches.batch_size * trainer.batches.accumulation,
        )
        self.prompt_length = longest_prompt(rows) if config.generates else 0
        self.tokens = _common_tokens(trainer)

    def batch(self, source: Source, batch: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """An optimiser step's batch (A, B, L), of as many rows, from the source."""
        mark = (STUDENT_ROWS if source in _BY_STUDENT else 0) if self.tagged else None
        if source is Source.DATASET:
            made = dict(batch)
            if mark is not None and "source" not in made:
                made["source"] = np.zeros(batch["input_ids"].shape[:2], np.int32)
            return made
        prompts = prompts_of(batch["input_ids"], batch["labels"], batch["segments"] > 0)
        examples = self._examples(source, prompts)
        return completed(examples, batch, self.trainer.batches.pad, mark)

    def _examples(self, source: Source, prompts: list[NDArray[Any]]) -> list[Example]:
        if source is Source.BUFFER:
            return self.draw(len(prompts))
        trainer, config = self.trainer, self.trainer.config
        teacher = trainer.teacher
        if source is Source.TEACHER and isinstance(teacher, InMemory):
            model = teacher.model
        else:
            model = trainer.student
        answers = generate(
            model,
            prompts,
            end_tokens=self.end_tokens,
            pad=trainer.batches.pad,
            max_new_tokens=config.max_new_tokens,
            prompt_length=self.prompt_length,
            max_length=trainer.batches.length,
            tokens=self.tokens,
            temperature=config.generation_temperature,
            top_p=config.generation_top_p,
            key=jax.random.fold_in(jax.random.key(config.seed), trainer.step),
            batch_size=config.generation_batch_size or config.per_device_train_batch_size,
        )
        examples = [Example(p, a.astype(np.int64)) for p, a in zip(prompts, answers, strict=True)]
        if Source.BUFFER in trainer.policy.sources:
            for example in examples:
                self.buffer.push(*example)
        return examples


def _common_tokens(trainer: Trainer) -> int | None:
    """How many first tokens both models have, where one has more: no other reads the rest."""
    if not isinstance(trainer.teacher, ModelTeacher):  # a base has the student's
        return None
    sizes = {model.config.vocabulary for model in (trainer.student, trainer.teacher.model)}
    return min(sizes) if len(sizes) > 1 else None
