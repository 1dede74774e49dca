"""The oracle that errors are measured from: the plain form, with digits to spare."""

from __future__ import annotations

import functools

import numpy as np

from benchmarks import inputs, peers
from benchmarks.cases import Case


@functools.cache
def value_and_grad(
    case: Case, kind: str, shape: tuple[int, int]
) -> tuple[np.longdouble, np.ndarray]:
    """The loss of :func:`benchmarks.inputs.dense`, and its gradient by the student's logits.

    The gradient by torch's autograd in float64. Where student and teacher are close the value is
    the small difference of large sums, which takes the extended precision of NumPy's longdouble
    (as far as the processor has it).
    """
    import torch

    student, teacher = inputs.dense(kind, *shape)
    extended = (student.astype(np.longdouble), teacher.astype(np.longdouble))
    value = case.plain(*extended, peers.numpy_library())
    leaf = torch.from_numpy(student).double().requires_grad_()
    loss = case.plain(leaf, torch.from_numpy(teacher).double(), peers.torch_library())
    (grad,) = torch.autograd.grad(loss, leaf)
    return value, grad.numpy()
