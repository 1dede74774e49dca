"""What torch lets its user set for the whole process changes neither values nor gradients.

Run in a process of its own: before outputs named their device, kernels wrote to address 0.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import amidmath as am

VOCABULARY = 512
ROWS = (2, 160)
"""Below and above the size from which kernels compute."""


def tensors(rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, VOCABULARY), (rows, VOCABULARY), (rows, 16), (VOCABULARY, 16))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def of_knobs(s: Any, t: Any, *_: Any) -> Any:
    alpha = t.detach()[:, 0]
    return am.AMiD(alpha=alpha, lam=torch.sigmoid(s[:, 1]))(s, t)


def from_hidden(s: Any, t: Any, hidden: Any, head: Any) -> Any:
    labels = s.detach().argmax(-1)
    teacher = am.Hidden(2 * hidden.detach(), head.detach())
    return am.AMiD()(am.Hidden(hidden, head), teacher, labels=labels)


def with_gradient(s: Any, t: Any, *_: Any) -> Any:
    value, grad = am.AMiD(order="qr").value_and_grad(s, t, mask=t[:, 0] > 0)
    return value + (grad * s).sum()


LOSSES = {
    "mean": lambda s, t, *_: am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.3)(s, t),
    "each": lambda s, t, *_: am.AMiD(alpha=-5.0)(s, t, reduction="none").square().sum(),
    "masked": lambda s, t, *_: am.AMiD()(s, t, mask=t[:, 0] > 0, denominator=3),
    "knobs": of_knobs,
    "hidden": from_hidden,
    "list": lambda s, t, *_: am.AMiD()(s, am.top_k(t.detach(), 4)),
    "gradient": with_gradient,
    "divergence": lambda s, t, *_: am.FisherRao()(s.log_softmax(-1), t.log_softmax(-1)).sum(),
    "mixture": lambda s, t, *_: am.alpha_mixture(s, t, alpha=0.5, lam=0.3).square().mean(),
    "mean of two": lambda s, t, *_: am.log_falpha_mean(
        torch.stack([s, t]), alpha=0.5, weights=[0.3, 0.7]
    ).mean(),
    "fisher": lambda s, t, *_: am.geometry.fisher_metric(s.log_softmax(-1), s, t).sum(),
    "reference": lambda s, t, *_: am.AMiD()(s, t, backend="reference"),
}
OF_TORCH = ("mixture", "mean of two", "divergence", "fisher", "reference")
"""Those that hand the teacher to operations of torch's own, which save no such tensors."""


@contextmanager
def kept(set_to: Any, value: Any, back: Any) -> Iterator[None]:
    set_to(value)
    try:
        yield
    finally:
        set_to(back)


SETTINGS = {
    "device meta": lambda: torch.device("meta"),
    "default device meta": partial(kept, torch.set_default_device, "meta", None),
    "float64": partial(kept, torch.set_default_dtype, torch.float64, torch.float32),
    "float16": partial(kept, torch.set_default_dtype, torch.float16, torch.float32),
    "deterministic": partial(kept, torch.use_deterministic_algorithms, True, False),
    "three threads": partial(kept, torch.set_num_threads, 3, torch.get_num_threads()),
    "no denormals": partial(kept, torch.set_flush_denormal, True, False),
    "anomaly": torch.autograd.detect_anomaly,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
}


def derivatives(loss: Any, rows: int, setting: Any) -> list[torch.Tensor]:
    """The value and the gradients that there are, made under a setting."""
    leaves = [a.requires_grad_() for a in tensors(rows)]
    with setting():
        value = loss(*leaves)
        grads: Any = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [value.detach(), *(g for g in grads if g is not None)]


def against_inference(loss: Any, rows: int) -> torch.Tensor:
    """The student's gradient against a teacher made in inference mode."""
    student, teacher, hidden, head = tensors(rows)
    with torch.inference_mode():
        teacher = teacher.clone()
    leaves = student.requires_grad_(), hidden.requires_grad_()
    value = loss(student, teacher, hidden, head)
    return next(g for g in torch.autograd.grad(value, leaves, allow_unused=True) if g is not None)


def wrong() -> Iterator[str]:
    """Which losses come out otherwise under which settings."""
    import warnings

    warnings.simplefilter("ignore")  # what torch says of anomaly mode
    for rows in ROWS:
        for name, loss in LOSSES.items():
            wanted = derivatives(loss, rows, torch.enable_grad)
            if name not in OF_TORCH and not torch.equal(against_inference(loss, rows), wanted[1]):
                yield f"{name}, {rows} rows, against a teacher made in inference mode"
            for which, setting in SETTINGS.items():
                got = derivatives(loss, rows, setting)
                rounded = which == "autocast" and name == "hidden"
                for one, two in zip(got, wanted, strict=False):
                    same = one.dtype == two.dtype and one.device == two.device
                    close = same and torch.allclose(one, two, rtol=1e-5, atol=1e-7)
                    if not close and not (same and rounded):
                        yield f"{name}, {rows} rows, under {which}"


def test_settings_change_nothing():
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


if __name__ == "__main__":
    print(*wrong(), sep="\n", end="")
