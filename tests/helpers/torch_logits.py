"""Logits of torch as the tests of its kernels take them, and how near a result must be."""

from __future__ import annotations

import torch

ROWS, VOCABULARY = 5, 1003
LARGE = (66, 1003)
"""Enough to compile unasked."""


def logits(rows=ROWS, vocabulary=VOCABULARY, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    teacher = 3.0 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    student = teacher + torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype)


def assert_near(got, wanted, eps, bound=32.0):
    got, wanted = got.detach().double(), wanted.detach().double()
    scale = wanted.abs().amax(dim=-1, keepdim=True) if wanted.ndim > 1 else wanted.abs()
    assert ((got - wanted).abs() <= bound * eps * scale + eps * wanted.abs()).all()
