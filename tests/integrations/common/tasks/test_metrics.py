"""Metrics against values worked out by hand from their definitions."""

import os
import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest

from amidmath.integrations.common.tasks.metrics import (
    METRICS,
    RowMean,
    bootstrap_interval,
    last_number,
    marked_number,
)

WITH_ROWS = [name for name, metric in METRICS.items() if isinstance(metric, RowMean)]


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    # "the cat on mat": 4 of the 6 words predicted, 4 of the 8 words wanted.
    prediction, reference = "The cat sat on the mat.", "the cat lies today on a warm mat"
    precision, recall = 4 / 6, 4 / 8
    expected = 100 * 2 * precision * recall / (precision + recall)
    assert METRICS["rouge_l"]([prediction], [[reference]]) == pytest.approx(expected)


def test_rouge_l_stems_words_of_more_than_three_letters() -> None:
    assert METRICS["rouge_l"](["jumping dogs"], [["jumped dog"]]) == pytest.approx(100.0)
    assert METRICS["rouge_l_unstemmed"](["jumping dogs"], [["jumped dog"]]) == 0.0
    assert METRICS["rouge_l_unstemmed"](["big dogs"], [["big dog"]]) == pytest.approx(50.0)


def test_the_best_reference_counts_and_rows_are_averaged() -> None:
    references = [["x y", "a b c d"], ["nothing alike"]]
    assert METRICS["rouge_l"](["a b c d", "q"], references) == pytest.approx(50.0)


def test_exact_match_ignores_case_punctuation_and_spaces_but_not_articles() -> None:
    metric = METRICS["exact_match"]
    assert metric(["  The  Answer, is 42!"], [["the answer is 42"]]) == 100.0
    assert metric(["answer is 42"], [["the answer is 42"]]) == 0.0


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 1,234.5 dollars.", "1234.5"),
        ("x = -3", "-3"),
        ("10-3=7", "7"),
        ("8-3", "3"),
        ("It costs $2.50.", "2.50"),
        ("1,000,000 in all", "1000000"),
        ("3 or 4.", "4"),
        ("12,34", "34"),
        ("#### 18", "18"),
    ],
)
def test_last_number(text: str, number: str) -> None:
    assert last_number(text) == Decimal(number)


def test_texts_without_a_number() -> None:
    assert last_number("no idea, - sorry.") is None
    assert marked_number("it is 5") is None
    assert marked_number("#### none\n5") is None


@pytest.mark.parametrize(
    ("prediction", "strict", "flexible"),
    [
        ("3 * 6 = 18\n#### 18", 100.0, 100.0),
        ("#### 18.00", 100.0, 100.0),
        ("#### $1,018", 0.0, 0.0),
        ("so it is 18.", 0.0, 100.0),
        ("#### 17\n18", 0.0, 0.0),
        ("#### 18\n#### 19", 100.0, 100.0),
        ("", 0.0, 0.0),
    ],
)
def test_gsm8k(prediction: str, strict: float, flexible: float) -> None:
    reference = ["She makes 9 * 2 = <<9*2=18>>18 dollars.\n#### 18"]
    assert METRICS["gsm8k_strict"]([prediction], [reference]) == strict
    assert METRICS["gsm8k_flexible"]([prediction], [reference]) == flexible


def test_gsm8k_thousands() -> None:
    assert METRICS["gsm8k_strict"](["#### 2125"], [["x\n#### 2,125"]]) == 100.0


def test_gsm8k_needs_a_marked_reference() -> None:
    with pytest.raises(ValueError, match="#### NUMBER"):
        METRICS["gsm8k_strict"](["#### 18"], [["18"]])


def test_bleu_is_the_geometric_mean_of_precisions() -> None:
    # 6 of 7 words, 5 of 6 pairs, 4 of 5 triples, 3 of 4 quadruples; longer than the reference.
    value = METRICS["bleu"](["the cat sat on the mat today"], [["the cat sat on the mat"]])
    assert value == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)


def test_bleu_of_a_short_prediction_has_a_brevity_penalty() -> None:
    value = METRICS["bleu"](["the cat sat on"], [["the cat sat on the mat"]])
    assert value == pytest.approx(100 * np.exp(1 - 6 / 4))


def test_chrf_averages_precision_and_recall_over_lengths() -> None:
    # Of single letters one of two fits, of pairs none: precision and recall are both a quarter.
    assert METRICS["chrf"](["ab"], [["ac"]]) == pytest.approx(25.0)


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_corpus_metrics_take_rows_with_more_or_fewer_references(name: str) -> None:
    long, other = "the cat sat on the mat", "quite another long sentence here"
    uneven = [[other, long], [other]]
    assert METRICS[name]([long, other], uneven) == pytest.approx(100.0)
    assert METRICS[name]([long, other], [[other], [other]]) < 99.0


@pytest.mark.parametrize("name", WITH_ROWS)
def test_the_mean_is_that_of_the_rows(name: str) -> None:
    metric = METRICS[name]
    assert isinstance(metric, RowMean)
    predictions, references = (
        ["a #### 1", "b", "c"],
        [["#### 1"], ["b #### 2"], ["#### 3", "#### 4"]],
    )
    rows = metric.rows(predictions, references)
    assert len(rows) == 3
    assert metric(predictions, references) == pytest.approx(sum(rows) / 3)


@pytest.mark.parametrize("name", METRICS)
def test_unfit_input(name: str) -> None:
    metric = METRICS[name]
    with pytest.raises(ValueError, match="as many, got 2 and 1"):
        metric(["a", "b"], [["#### 1"]])
    with pytest.raises(ValueError, match="at least one row"):
        metric([], [])
    with pytest.raises(ValueError, match=r"references\[0\] must be a list of at least one text"):
        metric(["a"], [[]])
    with pytest.raises(ValueError, match=r"references\[0\] must be a list .* got 'a text'"):
        metric(["a"], ["a text"])


def test_bootstrap_interval_is_near_the_normal_one() -> None:
    values = [0.0, 100.0] * 200
    low, high = bootstrap_interval(values)
    half = 1.96 * 50.0 / np.sqrt(400)
    assert low == pytest.approx(50.0 - half, abs=0.6)
    assert high == pytest.approx(50.0 + half, abs=0.6)
    assert bootstrap_interval(values) == (low, high)


def test_bootstrap_interval_of_equal_rows_is_a_point() -> None:
    assert bootstrap_interval([7.0] * 5) == (7.0, 7.0)


def test_tasks_and_metrics_import_no_framework() -> None:
    code = (
        "import sys, amidmath.integrations.common.tasks.tasks;"
        "import amidmath.integrations.common.tasks.metrics as m;"
        "m.METRICS['rouge_l'](['a'], [['a']]); m.METRICS['bleu'](['a'], [['a']]);"
        "print(sorted({'torch', 'jax', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
