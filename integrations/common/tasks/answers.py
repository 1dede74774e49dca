"""Answers to the prompts of a task, and their scores."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from amidmath.integrations.common.tasks.metrics import METRICS, RowMean, bootstrap_interval
from amidmath.integrations.common.tasks.rows import Row
from amidmath.integrations.common.tasks.tasks import Task, cut_at_stop

TO_TEACHER = "rouge_l_to_teacher"
"""ROUGE-L of a student's answers against its teacher's."""


@dataclass(frozen=True)
class Decoding:
    """The choice of answers.

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
class Answers:
    """The answers of a model.

    Args:
        texts: one list a seed, in the prompts' order.
        unfinished: of each, whether it reached max_new_tokens without an end.
    """

    texts: list[list[str]]
    unfinished: list[list[bool]]

    @classmethod
    def of_tokens(
        cls,
        by_seed: Iterable[Sequence[Sequence[int]]],
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        task: Task,
    ) -> "Answers":
        """From token ids, as texts that end where the task says.

        Args:
            by_seed: the tokens of each answer, each at least one, with the one that ended it.
            tokenizer: the model's.
            ends: which tokens end an answer.
            task: where a text ends.
        """
        texts, unfinished, size = [], [], len(tokenizer)
        for found in by_seed:
            unfinished.append([ids[-1] not in ends for ids in found])
            # A padded vocabulary has ids without a token, which stand for no text.
            known = [[token for token in ids if token < size] for ids in found]
            whole = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in known]
            texts.append([cut_at_stop(text, task.stop).strip() for text in whole])
        return cls(texts, unfinished)


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

    @classmethod
    def of(
        cls,
        answers: Answers,
        rows: Sequence[Row],
        task: Task,
        teacher_answers: Sequence[Sequence[str]] | None = None,
    ) -> "TaskResult":
        """The scores of some answers.

        Args:
            answers: to the prompts of the rows.
            rows: with the references.
            task: which metrics.
            teacher_answers: another model's answers, one list a seed; adds ``TO_TEACHER``.
        """
        scores = score(answers.texts, rows, task)
        if teacher_answers is not None:
            as_references = [[(text,) for text in texts] for texts in teacher_answers]
            scores[TO_TEACHER] = _score("rouge_l", answers.texts, as_references, len(rows))
        unfinished = sum(map(sum, answers.unfinished)) / sum(map(len, answers.unfinished))
        return cls(scores, answers.texts, unfinished)


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
