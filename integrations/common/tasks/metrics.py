"""Measures of answers against references: functions of (predictions, references), by name.

Values are percentages, as the papers report them. A metric that is a mean over rows has ``row``,
and a bootstrap interval; BLEU and chrF are taken of a whole corpus.
"""

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Protocol, cast

import numpy as np
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]


class Metric(Protocol):
    """A percentage: how well predictions fit the references of the same rows."""

    def __call__(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """The value.

        Args:
            predictions: one answer a row.
            references: one or more acceptable answers a row.
        """
        ...


@dataclass(frozen=True)
class RowMean:
    """The mean over rows of the best value over a row's references.

    Args:
        row: the value, from 0 to 1, of one prediction against one reference.
    """

    row: Callable[[str, str], float]

    def __call__(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        """See :class:`Metric`."""
        return float(np.mean(self.rows(predictions, references)))

    def rows(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """The percentage of each row."""
        _check(predictions, references)
        return [
            100.0 * max(self.row(prediction, reference) for reference in several)
            for prediction, several in zip(predictions, references, strict=True)
        ]


def bootstrap_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A percentile bootstrap interval of the mean of independent rows.

    Args:
        values: one a row.
        level: the interval's coverage.
        resamples: how many means to draw.
        seed: of the drawing.

    Returns:
        The lower and the upper end.
    """
    rows = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [rng.choice(rows, rows.size).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, thousands separators allowed; None if there is none."""
    found = _NUMBER.findall(text)
    return _number(found[-1]) if found else None


def marked_number(text: str) -> Decimal | None:
    """The number after the first "####", on the same line; None if there is none."""
    _, mark, tail = text.partition("####")
    found = _NUMBER.search(tail.split("\n")[0])
    return _number(found.group()) if mark and found else None


# A sign counts only where no digit stands before it: "10-3" has no negative number.
_NUMBER = re.compile(
    r"(?<![\d.])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])-?\.\d+|\d+"
)


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text.replace(",", ""))
    except InvalidOperation:
        return None


def _gsm8k(extract: Callable[[str], Decimal | None]) -> Callable[[str, str], float]:
    def score(prediction: str, reference: str) -> float:
        truth = marked_number(reference)
        if truth is None:
            raise ValueError(f"a GSM8K reference must hold '#### NUMBER', got {reference!r}")
        return float(extract(prediction) == truth)

    return score


def _marked_or_last(text: str) -> Decimal | None:
    marked = marked_number(text)
    return last_number(text) if marked is None else marked


def _rouge_l(stem: bool) -> Callable[[str, str], float]:
    def score(prediction: str, reference: str) -> float:
        return float(_scorer(stem).score(reference, prediction)["rougeL"].fmeasure)

    return score


@cache
def _scorer(stem: bool) -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=stem)


def _exact_match(prediction: str, reference: str) -> float:
    return float(_normalized(prediction) == _normalized(reference))


def _normalized(text: str) -> str:
    """Lower case without punctuation and with single spaces, as SQuAD does but with articles."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    _check(predictions, references)
    return float(sacrebleu.BLEU().corpus_score(predictions, _streams(references)).score)


def _chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    _check(predictions, references)
    return float(sacrebleu.CHRF().corpus_score(predictions, _streams(references)).score)


def _streams(references: Sequence[Sequence[str]]) -> list[list[str]]:
    """The first reference of every row, then the second, and None where a row has none."""
    most = max(map(len, references))
    padded = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    return cast("list[list[str]]", padded)  # sacrebleu leaves None out, though its types do not say


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"predictions and references must be as many, got {len(predictions)} and "
            f"{len(references)}"
        )
    if not predictions:
        raise ValueError("predictions must have at least one row, got none")
    lacking = next((i for i, row in enumerate(references) if isinstance(row, str) or not row), None)
    if lacking is not None:
        raise ValueError(
            f"references[{lacking}] must be a list of at least one text, got "
            f"{references[lacking]!r}"
        )


METRICS: dict[str, Metric] = {
    "rouge_l": RowMean(_rouge_l(stem=True)),
    "rouge_l_unstemmed": RowMean(_rouge_l(stem=False)),
    "exact_match": RowMean(_exact_match),
    "gsm8k_strict": RowMean(_gsm8k(marked_number)),
    "gsm8k_flexible": RowMean(_gsm8k(_marked_or_last)),
    "bleu": _bleu,
    "chrf": _chrf,
}

NAMES: dict[str, str] = {
    "rouge_l": "ROUGE-L",
    "rouge_l_unstemmed": "ROUGE-L without stems",
    "exact_match": "exact match",
    "gsm8k_strict": "GSM8K, strict",
    "gsm8k_flexible": "GSM8K, flexible",
    "bleu": "BLEU",
    "chrf": "chrF",
}
"""The names of the metrics for people."""
