"""A model's answers on an evaluation set and their scores; its rows as held-out batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.tasks.answers import Answers, Decoding, TaskResult
from amidmath.integrations.common.tasks.prompts import HeldOut, Prompts, encode_prompts
from amidmath.integrations.common.tasks.rows import Row
from amidmath.integrations.common.tasks.tasks import Task
from amidmath.integrations.torch_loop.models.generation import end_tokens, generate


def evaluate_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    task: Task,
    *,
    decoding: Decoding | None = None,
    prompts: Prompts | None = None,
    teacher_answers: Sequence[Sequence[str]] | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> TaskResult:
    """Let a model answer the prompts of some rows, and score the answers.

    Args:
        model: a causal language model, on its device; its mode and settings are restored, and
            torch's random generators are left as they were.
        tokenizer: the model's.
        rows: what to answer.
        task: the metrics, and where an answer stops.
        decoding: how to answer; the task's own way if not given.
        prompts: ``encode_prompts`` of the rows, if made already.
        teacher_answers: another model's answers, one list a seed; adds "rouge_l_to_teacher".
        on_batch: called after each batch with its number of prompts.

    Raises:
        InputError: a prompt that leaves no room for an answer, a chat prompt without a template.
    """
    how = decoding or Decoding(task.max_new_tokens, task.temperature, seeds=task.seeds)
    encoded = prompts or encode_prompts(tokenizer, rows)
    answers = answer(model, tokenizer, encoded.ids, task, how, on_batch)
    return TaskResult.of(answers, rows, task, teacher_answers)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    task: Task,
    how: Decoding,
    on_batch: Callable[[int], object] | None = None,
) -> Answers:
    """A model's answers to some prompts, as texts that end where the task says.

    Args:
        model: as for ``evaluate_task``.
        tokenizer: the model's.
        prompts: token ids.
        task: where an answer stops.
        how: how to answer.
        on_batch: called after each batch with its number of prompts.
    """
    given = [torch.tensor(ids, dtype=torch.int64) for ids in prompts]
    by_seed = [
        generate(
            model,
            given,
            tokenizer=tokenizer,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=seed,
            batch_size=how.batch_size,
            on_batch=on_batch,
        )
        for seed in how.seeds
    ]
    found = [[ids.tolist() for ids in of_seed] for of_seed in by_seed]
    return Answers.of_tokens(found, tokenizer, end_tokens(model, tokenizer), task)


def collated(rows: HeldOut, pad: int, batch_size: int) -> list[dict[str, Any]]:
    """Held-out rows as batches for ``evaluation.evaluate``: input ids, masks and labels.

    Args:
        rows: the rows.
        pad: the token that fills them.
        batch_size: rows at a time.
    """
    pairs = list(zip(rows.input_ids, rows.labels, strict=True))
    return [
        _collated(pairs[start : start + batch_size], pad)
        for start in range(0, len(pairs), batch_size)
    ]


def _collated(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> dict[str, Any]:
    longest = max(len(ids) for ids, _ in pairs)
    ids = torch.full((len(pairs), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, NO_LABEL)
    for row, (tokens, counted) in enumerate(pairs):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, : len(tokens)] = torch.tensor(counted)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
