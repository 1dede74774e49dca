"""Batches of sequences that the student or the teacher generates for the dataset's prompts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trl.models.utils import unwrap_model_for_generation

from amidmath.integrations.shared.errors import InputError
from amidmath.integrations.shared.policy_base import Source
from amidmath.integrations.shared.replay_buffer import Example, ReplayBuffer
from amidmath.integrations.torch_loop.generation import generate
from amidmath.integrations.torch_loop.models import context_of
from amidmath.integrations.torch_loop.objective import STUDENT_ROWS
from amidmath.integrations.torch_loop.teachers import ModelTeacher

if TYPE_CHECKING:
    from amidmath.integrations.torch_loop.trainer import AMiDTrainer

_BY_STUDENT = {Source.STUDENT, Source.BUFFER}


class Rollouts:
    """Puts generated or remembered completions in place of the dataset's.

    Args:
        trainer: whose student, teacher and collator are used.

    Raises:
        InputError: the data policy generates, and there are no prompts, rows are packed, the
            teacher cannot generate or judge new sequences, or the buffer is smaller than a step.
    """

    def __init__(self, trainer: "AMiDTrainer") -> None:
        """Check that the policy can be followed."""
        self.trainer = trainer
        self.tagged = "any" not in trainer.recipe.method.sources
        args = trainer.settings
        self.buffer = args.replay_buffer()
        self.rng = np.random.default_rng([args.seed, args.process_index])
        self.generated_tokens = 0
        sources = trainer.policy.sources
        if sources == {Source.DATASET}:
            return
        flag = f"--policy {trainer.policy.name}"
        if args.packing or args.padding_free:
            raise InputError(
                f"{flag} generates completions of single prompts: leave out --packing and "
                "--padding_free"
            )
        _check_prompts(flag, trainer.train_rows["labels"])
        if not trainer.teacher.knows_new_rows:
            raise InputError(
                f"{flag} needs a teacher that can judge new sequences; a cache knows the "
                "dataset's rows only: give --teacher_model_name_or_path, or --policy off_policy"
            )
        if Source.TEACHER in sources and not isinstance(trainer.teacher, ModelTeacher):
            raise InputError(f"{flag}: {trainer.teacher.describe()} does not generate")
        step_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        if Source.BUFFER in sources and self.buffer.capacity < step_rows:
            raise InputError(
                f"--buffer_capacity {self.buffer.capacity} is less than the {step_rows} rows of "
                "an optimiser step on each process"
            )

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

    def state(self) -> dict[str, Any]:
        """The replay buffer and the random numbers, for checkpoints."""
        return {"generator": self.rng.bit_generator.state, **self.buffer.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a ``state()``; raises InputError if it is of another buffer, or damaged."""
        rest = dict(state)
        self.rng.bit_generator.state = rest.pop("generator")
        buffer = ReplayBuffer.from_state(rest)
        if buffer.capacity != self.buffer.capacity:
            raise InputError(
                f"--buffer_capacity {self.buffer.capacity}: the checkpoint's replay buffer has a "
                f"capacity of {buffer.capacity}; give that"
            )
        self.buffer = buffer

    def _examples(self, source: Source, prompts: list[torch.Tensor]) -> list[Example]:
        trainer = self.trainer
        if source is Source.BUFFER:
            remembered: list[Example] = self.buffer.sample(len(prompts), self.rng)
            return remembered
        args = trainer.settings
        of_teacher = source is Source.TEACHER
        model = trainer.teacher.model if of_teacher else trainer.model_wrapped
        length = int(args.max_length or 0)
        limit = min(length, context_of(trainer.student) or length)
        longest = max(len(prompt) for prompt in prompts)
        with unwrap_model_for_generation(model, trainer.accelerator) as generator:
            completions = generate(
                generator,
                prompts,
                tokenizer=trainer.tokenizer,
                max_new_tokens=min(args.max_new_tokens, limit - longest),
                temperature=args.generation_temperature,
                top_p=args.generation_top_p,
                batch_size=args.generation_batch_size or args.per_device_train_batch_size,
            )
        self.generated_tokens += sum(len(completion) for completion in completions)
        examples = [
            Example(prompt.cpu().numpy(), completion.cpu().numpy())
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        if Source.BUFFER in trainer.policy.sources:
            for example in examples:
                self.buffer.push(*example)
        return examples


def _prompts(batch: dict[str, Any]) -> list[torch.Tensor]:
    """What stands before the first labelled token of every row, padding left out."""
    found = []
    kept = batch["attention_mask"].bool()
    for ids, labels, keep in zip(batch["input_ids"], batch["labels"], kept, strict=True):
        ids, labels = ids[keep], labels[keep]
        found.append(ids[: int((labels != -100).int().argmax())])
    return found


def _row(example: Example) -> dict[str, list[int]]:
    prompt, completion = example.prompt.tolist(), example.completion.tolist()
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def _check_prompts(flag: str, labels: Sequence[Sequence[int]]) -> None:
    bare = next((i for i, row in enumerate(labels) if row[0] != -100), None)
    if bare is not None:
        raise InputError(
            f"{flag} generates completions of prompts, and row {bare} of the dataset has none: "
            "give columns 'prompt' and 'completion' (or 'messages' with --assistant_only_loss), "
            "or --policy off_policy"
        )
