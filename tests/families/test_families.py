"""Some families through the loops; every family is slow. And that differences are found."""

from __future__ import annotations

import pytest
from families import report
from families.build import every_family
from families.run import SCRIPTS, Family, run
from families.ways import RELOADED, WAYS, Outcome, outcomes

from amidmath.integrations import torch_distill

# Of each a way that other models do not put to the test: biases on attention for positions, states
# that run through a row, learned positions, sinks.
SOME = {
    "bloom": ["packed"],
    "mamba": ["packed", "generated"],
    "gpt2": ["padded", "LoRA"],
    "gpt_oss": ["packed"],
}


@pytest.mark.parametrize("model_type", SOME)
def test_some_families(model_type):
    found = outcomes(model_type, torch_distill.main, SOME[model_type])
    for way, outcome in found.items():
        assert outcome.verdict == ("refused" if way == "packed" else "right"), (way, outcome)
    assert (RELOADED in found) == ("padded" in SOME[model_type])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", every_family())
def test_every_family(model_type):
    _, family = run(model_type, tuple(SCRIPTS))
    if family.unavailable:
        pytest.skip(family.unavailable)
    assert not family.is_wrong, report.line(model_type, family)


def test_a_loss_that_differs_is_found(monkeypatch):
    """With a teacher that the loss is not computed from."""
    monkeypatch.setattr("families.ways.loss_of", lambda student, teacher, rows: 0.5)
    found = outcomes("llama", torch_distill.main, ["padded"])
    assert found["padded"].verdict == "wrong"
    assert found[RELOADED].verdict == "right"


def test_a_traceback_and_a_refusal_are_told_apart():
    def falls_over(argv: list[str]) -> int:
        raise KeyError("what")

    def refuses(argv: list[str]) -> int:
        print("error: no such thing")
        return 2

    failed = outcomes("llama", falls_over, ["padded"])["padded"]
    refused = outcomes("llama", refuses, ["padded"])["padded"]
    assert failed == Outcome("failed", "KeyError: 'what'")
    assert refused == Outcome("refused", "no such thing")
    assert Family({"torch": {"padded": failed}}).is_wrong
    assert not Family({"torch": {"padded": refused}}).is_wrong


def test_the_page():
    families = {
        "one": Family({"torch": dict.fromkeys(WAYS, Outcome("right"))}),
        "two": Family({"torch": {"packed": Outcome("refused", "rows see each other | so")}}),
        "three": Family({"torch": {"packed": Outcome("wrong", "1 for 2")}}),
        "four": Family(unavailable="ImportError: no timm"),
    }
    page = report.markdown(families)
    assert "| two |  | [1] |" in page
    assert "1. rows see each other \\| so\n" in page
    assert "**wrong: 1 for 2**" in page
    assert "- four: ImportError: no timm\n" in page
    assert "| torch: packed | 3 | 1 | 1 | 1 | 0 |" in page
