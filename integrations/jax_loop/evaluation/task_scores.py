"""The answers of a decoder to a task's prompts, and the scores of a trainer's student."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.evaluation.answers import Answers, Decoding
from amidmath.integrations.common.evaluation.task_scores import TaskScores
from amidmath.integrations.common.evaluation.tasks import Task
from amidmath.integrations.common.text.tokenizers import padding
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.generation import generate

if TYPE_CHECKING:
    from amidmath.integrations.jax_loop.training.trainer import JaxTrainer


def answer(
    model: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    ends: Sequence[int],
    prompts: Sequence[Sequence[int]],
    task: Task,
    how: Decoding,
    on_batch: Callable[[int], object] | None = None,
) -> Answers:
    """A model's answers to some prompts, as texts that end where the task says.

    One program serves all of them. With several processes, all must call it with the same.

    Args:
        model: the decoder, on one device or spread over a mesh.
        tokenizer: the model's.
        ends: which tokens end an answer.
        prompts: token ids.
        task: where a text ends.
        how: how to answer.
        on_batch: called after each batch with its number of prompts.
    """
    given = [np.asarray(ids, np.int32) for ids in prompts]
    by_seed = [
        generate(
            model,
            given,
            end_tokens=ends,
            pad=padding(tokenizer, ends, model.config.vocabulary),
            max_new_tokens=how.max_new_tokens,
            key=jax.random.key(seed),
            temperature=how.temperature,
            top_p=how.top_p,
            batch_size=how.batch_size,
            prompt_length=max(map(len, given)),
            on_batch=on_batch,
        )
        for seed in how.seeds
    ]
    found = [[ids.tolist() for ids in of_seed] for of_seed in by_seed]
    return Answers.of_tokens(found, tokenizer, ends, task)


def student_scores(asked: TaskScores, trainer: "JaxTrainer") -> dict[str, float]:
    """The scores of a trainer's student as it is now, in percent, by metric.

    The sampling has a key of its own, so that training goes on as if nothing had been asked. All
    processes must call it, and all are given the scores.

    Args:
        asked: what the student answers.
        trainer: whose student.
    """
    how = asked.decoding(trainer.config.per_device_eval_batch_size)
    ends = trainer.rollouts.end_tokens
    answers = answer(trainer.student, asked.tokenizer, ends, asked.prompts, asked.task, how)
    return asked.of(answers.texts[0], answers.unfinished[0])
