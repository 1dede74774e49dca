"""A model's answers on an evaluation set and their scores; its rows as held-out text."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amidmath.integrations.shared.errors import InputError, first_paragraph
from amidmath.integrations.shared.metrics import METRICS, RowMean, bootstrap_interval
from amidmath.integrations.shared.tasks import Row, Task, as_messages, as_text, cut_at_stop
from amidmath.integrations.torch_loop.generation import end_tokens, generate

PROMPT_STYLES = ("published", "plain", "chat")


@dataclass(frozen=True)
class Prompts:
    """The prompts of some rows as token ids.

    Args:
        ids: one tensor a row.
        cut: how many prompts were cut to the longest length allowed.
    """

    ids: list[torch.Tensor]
    cut: int = 0


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen.

    Args:
        max_new_tokens: the longest answer.
        temperature: 0 is greedy.
        top_p: nucleus of the sampling.
        seeds: one answer each for every row.
        batch_size: prompts at a time.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seeds: tuple[int, ...] = (0,)
    batch_size: int = 8


@dataclass(frozen=True)
class Score:
    """One metric of one model, in percent.

    Args:
        mean: over the seeds.
        std: the population's standard deviation over the seeds; None for one seed.
        by_seed: the value of each seed, in their order.
        rows: how many rows each is of.
        interval: a 95 % bootstrap interval of the mean over rows; None for a corpus metric.
    """

    mean: float
    std: float | None
    by_seed: tuple[float, ...]
    rows: int
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class TaskResult:
    """Answers and scores of one model.

    Args:
        scores: by metric.
        answers: one list a seed, in the rows' order.
        unfinished: share of the answers that reached max_new_tokens without an end.
    """

    scores: dict[str, Score]
    answers: list[list[str]]
    unfinished: float


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
    scores = score(answers.texts, rows, task)
    if teacher_answers is not None:
        as_references = [[(text,) for text in texts] for texts in teacher_answers]
        scores["rouge_l_to_teacher"] = _score("rouge_l", answers.texts, as_references, len(rows))
    unfinished = sum(map(sum, answers.unfinished)) / (len(rows) * len(how.seeds))
    return TaskResult(scores, answers.texts, unfinished)


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Args:
        texts: one list a seed, in the prompts' order.
        unfinished: of each, whether it reached max_new_tokens without an end.
    """

    texts: list[list[str]]
    unfinished: list[list[bool]]


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[torch.Tensor],
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
    ends = end_tokens(model, tokenizer)
    texts, unfinished = [], []
    for seed in how.seeds:
        found = generate(
            model,
            prompts,
            tokenizer=tokenizer,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=seed,
            batch_size=how.batch_size,
            on_batch=on_batch,
        )
        unfinished.append([int(ids[-1]) not in ends for ids in found])
        # A padded vocabulary has ids without a token, which stand for no text.
        known = [ids[ids < len(tokenizer)] for ids in found]
        whole = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in known]
        texts.append([cut_at_stop(text, task.stop).strip() for text in whole])
    return Answers(texts, unfinished)


def score(answers: Sequence[Sequence[str]], rows: Sequence[Row], task: Task) -> dict[str, Score]:
    """The task's metrics of some answers.

    Args:
        answers: one list a seed, in the rows' order.
        rows: with the references.
        task: which metrics.
    """
    references = [[row.references for row in rows]] * len(answers)
    return {name: _score(name, answers, references, len(rows)) for name in task.metrics}


def _score(
    name: str,
    answers: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    rows: int,
) -> Score:
    """One metric over all seeds."""
    metric = METRICS[name]
    interval = None
    if isinstance(metric, RowMean):
        by_row = [metric.rows(a, r) for a, r in zip(answers, references, strict=True)]
        values = tuple(statistics.fmean(row) for row in by_row)
        interval = bootstrap_interval(
            [statistics.fmean(seeds) for seeds in zip(*by_row, strict=True)]
        )
    else:
        values = tuple(metric(a, r) for a, r in zip(answers, references, strict=True))
    std = statistics.pstdev(values) if len(values) > 1 else None
    return Score(statistics.fmean(values), std, values, rows, interval)


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    style: str = "published",
    max_length: int | None = None,
    flag: str = "--prompt_style",
) -> Prompts:
    """The prompts as token ids.

    Args:
        tokenizer: the model's; with a template, if any prompt is a chat.
        rows: the rows.
        style: "published": texts as texts and messages as a chat; "plain": all as texts; "chat":
            all as a chat, a text being what the user says.
        max_length: longer prompts lose their end, as in MiniLLM's evaluation.
        flag: the argument that names the style, for messages.

    Raises:
        InputError: a chat without a template, or one that the template refuses.
    """
    if style not in PROMPT_STYLES:
        raise ValueError(f"style must be one of {', '.join(PROMPT_STYLES)}, got {style!r}")
    ids = [_prompt_ids(tokenizer, row, style, flag) for row in rows]
    cut = sum(max_length is not None and len(prompt) > max_length for prompt in ids)
    return Prompts([torch.tensor(prompt[:max_length], dtype=torch.int64) for prompt in ids], cut)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, row: Row, style: str, flag: str) -> list[int]:
    if style == "plain" or (style == "published" and isinstance(row.prompt, str)):
        return _text_ids(tokenizer, as_text(row.prompt))
    if not tokenizer.chat_template:
        raise InputError(
            f"the prompts are chats, but the tokenizer has no chat template: give {flag} plain"
        )
    try:
        text = tokenizer.apply_chat_template(
            as_messages(row.prompt), tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        raise InputError(
            f"row {row.number}: the chat template refuses its prompt: {first_paragraph(error)}"
        ) from error
    return list(tokenizer(str(text), add_special_tokens=False).input_ids)


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids with what begins a text, and without what would end it."""
    ids = list(tokenizer(text).input_ids)
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


@dataclass(frozen=True)
class HeldOut:
    """Rows as collated batches for ``evaluation.evaluate``.

    Args:
        batches: input ids, masks and labels; prompts and padding have no label.
        cut: how many rows were longer than the longest length allowed.
    """

    batches: list[dict[str, Any]]
    cut: int = 0


def held_out(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    prompts: Prompts,
    *,
    batch_size: int,
    max_length: int | None = None,
) -> HeldOut:
    """Each prompt with its first reference, of which alone the tokens count.

    A reference ends with the eos token, and loses its end where it is too long. A row without
    prompt counts from its second token on.

    Args:
        tokenizer: the models'.
        rows: the rows.
        prompts: ``encode_prompts`` of them.
        batch_size: rows at a time.
        max_length: of prompt and reference together, in tokens.

    Raises:
        InputError: a prompt that leaves no room for a reference.
    """
    sequences, cut = [], 0
    for row, prompt in zip(rows, prompts.ids, strict=True):
        whole = bool(row.prompt)  # else the reference is the whole text, from its beginning
        start = prompt.tolist() if whole else []
        reference = row.references[0]
        answer = (
            list(tokenizer(reference, add_special_tokens=False).input_ids)
            if whole
            else _text_ids(tokenizer, reference)
        )
        ids = start + answer
        if isinstance(tokenizer.eos_token_id, int):
            ids.append(tokenizer.eos_token_id)
        if max_length is not None and len(ids) > max_length:
            cut, ids = cut + 1, ids[:max_length]
        if len(ids) <= max(len(start), 1):
            raise InputError(
                f"row {row.number}: its prompt has {len(start)} tokens, --max_length {max_length} "
                "leaves no token of its reference; raise it, or cut prompts with "
                "--max_prompt_length"
            )
        sequences.append((ids, len(start)))
    pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
    batches = [
        _collate(sequences[start : start + batch_size], pad)
        for start in range(0, len(sequences), batch_size)
    ]
    return HeldOut(batches, cut)


def _collate(sequences: Sequence[tuple[list[int], int]], pad: int) -> dict[str, Any]:
    longest = max(len(ids) for ids, _ in sequences)
    ids = torch.full((len(sequences), longest), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (tokens, start) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
