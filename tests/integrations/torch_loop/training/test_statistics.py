"""The figures of steps and of evaluations: means over batches, and neither in the other."""

import math

import pytest
import torch

import amidmath as am
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.teachers.teachers import ModelTeacher
from amidmath.integrations.torch_loop.training.statistics import EVAL, TRAIN, Statistics

VOCABULARY = 5


def states(seed: int) -> States:
    """Of three positions, with a head that makes logits of them as they are."""
    hidden = torch.randn(1, 3, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    head = am.Head(torch.eye(VOCABULARY))
    return States(am.Hidden(hidden, head), head)


def batch(*labels: int) -> Batch:
    return Batch(torch.tensor([labels]), None)


def statistics() -> Statistics:
    return Statistics(ModelTeacher(torch.nn.Linear(1, VOCABULARY), "teacher"), "strict")


def expected(student: States, teacher: States, kept: slice) -> tuple[float, float]:
    """KL(p‖q) and the overlap, means over some positions, by torch's own functions."""
    q, p = (side.hidden[0, kept].log_softmax(-1) for side in (student, teacher))
    kl = (p.exp() * (p - q)).sum(-1).mean()
    return float(kl), float(torch.minimum(p.exp(), q.exp()).sum(-1).mean())


def test_a_step_has_the_means_over_its_batches() -> None:
    found, student, teacher = statistics(), states(0), states(1)
    found.look(TRAIN, student, teacher, batch(0, 1, -100))  # the first position predicts a label
    found.look(TRAIN, student, teacher, batch(0, -100, 2))  # the second
    figures, overlap = found.of_step()
    kl, of_both = expected(student, teacher, slice(2))
    assert figures == pytest.approx({"kl": kl, "overlap": of_both}, rel=1e-5)
    assert overlap == figures["overlap"]
    assert found.of_step() == ({}, None)  # they are of that step alone


def test_nothing_that_counts_is_an_overlap_of_nan() -> None:
    found = statistics()
    found.look(TRAIN, states(0), states(1), batch(0, -100, -100))
    figures, overlap = found.of_step()
    assert figures == {}
    assert overlap is not None
    assert math.isnan(overlap)


def test_an_evaluation_amid_a_step_leaves_the_step_alone() -> None:
    found, student, teacher = statistics(), states(0), states(1)
    found.look(TRAIN, student, teacher, batch(0, 1, -100))
    found.begin_evaluation(torch.device("cpu"))
    found.look(EVAL, student, teacher, batch(0, -100, 2))
    for loss, count in ((6.0, 2), (9.0, 4)):
        found.add_held_out(torch.tensor(loss), torch.tensor(count))
    kl, overlap = expected(student, teacher, slice(1, 2))
    assert found.of_evaluation("test") == pytest.approx(
        {"test_loss": 2.5, "test_kl": kl, "test_overlap": overlap}, rel=1e-5
    )
    kl, _ = expected(student, teacher, slice(1))
    assert found.of_step()[0]["kl"] == pytest.approx(kl, rel=1e-5)


def test_an_evaluation_without_tokens_has_a_loss_of_nan() -> None:
    found = statistics()
    found.begin_evaluation(torch.device("cpu"))
    assert math.isnan(found.of_evaluation("eval")["eval_loss"])
