"""The answers of a decoder to a task's prompts."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.tasks.answers import Answers, Decoding
from amidmath.integrations.common.tasks.tasks import Task
from amidmath.integrations.common.text.tokenizers import padding
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.models.generation import generate


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
