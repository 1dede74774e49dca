"""What losses of hidden states refuse, and how they say it."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
import torch

import amidmath as am

KL = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
STUDENT, TEACHER = am.Hidden(np.zeros((2, 3)), np.zeros((4, 3))), np.zeros((4, 5))
OTHER = am.Hidden(np.zeros((2, 5)), TEACHER)
TOP = am.TopK(np.log(np.full((2, 2), 0.25)), np.array([[0, 1], [2, 3]]))
WRONG = {
    "two libraries": (
        {"teacher": am.Hidden(torch.zeros(2, 5), torch.zeros(4, 5))},
        TypeError,
        "student.states and teacher.states must come from one array library",
    ),
    "positions": (
        {"teacher": am.Hidden(np.zeros((3, 5)), TEACHER)},
        ValueError,
        r"student.states and teacher.states must have the same positions, got shapes "
        r"\(2, 3\) and \(3, 5\)",
    ),
    "vocabularies": (
        {"teacher": am.Hidden(np.zeros((2, 5)), np.zeros((6, 5)))},
        ValueError,
        "one vocabulary, got 4 and 6 tokens; .*vocab='common'",
    ),
    "mask": ({"mask": np.ones(3, bool)}, ValueError, r"mask must broadcast to shape \(2,\)"),
    "mask's dtype": ({"mask": np.ones(2)}, TypeError, "mask must be boolean or 0/1 integers"),
    "mask's library": ({"mask": torch.ones(2)}, TypeError, "student.states and mask must come"),
    "reduction": ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
    "denominator": ({"denominator": 0.0}, ValueError, "denominator must be positive"),
    "no number": ({"denominator": "2"}, TypeError, "denominator must be a number or a scalar"),
    "backend": ({"backend": "reference"}, ValueError, "am.Hidden has one backend, None, got 'ref"),
    "no backend": ({"backend": "best"}, ValueError, "backend must be"),
    "a pair": ({"teacher": tuple(TOP)}, TypeError, "teacher must be an array"),
    "common lists": (
        {"student": am.Hidden(np.zeros((2, 3)), np.zeros((4, 3)), "common"), "teacher": TOP},
        ValueError,
        "student.vocab must be 'strict' .* got 'common': put -1",
    ),
    "lists' positions": (
        {"teacher": am.TopK(*(a[:1] for a in TOP))},
        ValueError,
        r"teacher.indices must have the positions of student.states .* \(1, 2\) and \(2, 3",
    ),
    "a list's token": (
        {"teacher": TOP._replace(indices=TOP.indices + 1)},
        ValueError,
        r"teacher.indices must be tokens in \[0, 4\), or -1 .* 4.0",
    ),
    "lists' library": (
        {"teacher": am.TopK(*map(array_api_strict.asarray, TOP))},
        TypeError,
        "student.states and teacher.log_probs must come from one array library",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(change, kind, message):
    for call in (KL, KL.value_and_grad):
        with pytest.raises(kind, match=message):
            call(**({"student": STUDENT, "teacher": OTHER} | change))


def test_what_there_is_to_differentiate_by():
    names = "'student', 'student.states', 'student.head'"
    for wrt in (("student.head", "lam"), "teacher", "student.head.weight"):
        with pytest.raises(ValueError, match=f"wrt must be one of {names}, got"):
            KL.value_and_grad(STUDENT, OTHER, wrt=wrt)


def test_parts_at_two_temperatures_take_no_list():
    with pytest.raises(ValueError, match=r"one temperature.* got 1.0, 2.0; call each part"):
        (am.AMiD(temperature=2.0) + am.AMiD())(STUDENT, TOP)
