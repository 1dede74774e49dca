"""The loss of hidden states by definition: logits multiplied out in float64, torch's autograd.

Against lists, the loss of those logits, whose own oracle is ``list_oracle``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import amidmath as am


@dataclass
class Case:
    """Both sides as NumPy arrays: what a loss and the oracle are given."""

    student_hidden: np.ndarray
    teacher_hidden: np.ndarray
    student_head: np.ndarray
    teacher_head: np.ndarray
    student_bias: np.ndarray | None = None
    student_low_rank: tuple[np.ndarray, np.ndarray] | None = None
    student: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    factor: float = 0.5
    lists: tuple[np.ndarray, np.ndarray] | None = None

    def student_arrays(self) -> dict[str, np.ndarray]:
        """What the student has to differentiate by, as ``am.Hidden`` names it."""
        found = {"states": self.student_hidden, "head.weight": self.student_head}
        if self.student_bias is not None:
            found["head.bias"] = self.student_bias
        if self.student_low_rank is not None:
            found |= {f"head.low_rank[{i}]": a for i, a in enumerate(self.student_low_rank)}
        return found

    def student_of(self, arrays: dict[str, Any], **options: Any) -> am.Hidden:
        """The student's side, of arrays by those names."""
        low = self.student_low_rank and (
            *(arrays[f"head.low_rank[{i}]"] for i in (0, 1)),
            self.factor,
        )
        head = am.Head(arrays["head.weight"], arrays.get("head.bias"), low_rank=low, **self.student)
        return am.Hidden(arrays["states"], head, **options)

    def sides(self, array: Any, integers: Any = None, **options: Any) -> tuple[Any, Any]:
        """Student and teacher, made by ``array``; a teacher's lists, where there are any."""
        student = self.student_of(
            {k: array(a) for k, a in self.student_arrays().items()}, **options
        )
        if self.lists is not None:
            return student, am.TopK(array(self.lists[0]), (integers or array)(self.lists[1]))
        head = am.Head(array(self.teacher_head), **self.teacher)
        return student, am.Hidden(array(self.teacher_hidden), head)


def case(
    shape: tuple[int, ...] = (13,),
    vocabulary: tuple[int, int] = (11, 11),
    sizes: tuple[int, int] = (3, 5),
    *,
    bias: bool = False,
    low_rank: bool = False,
    student: dict[str, Any] | None = None,
    teacher: dict[str, Any] | None = None,
    seed: int = 7,
    k: int | None = None,
    temperature: float = 1.0,
) -> Case:
    """Random arguments; the teacher by its k most probable tokens, where that is not None."""
    rng = np.random.default_rng(seed)
    (v_s, v_t), (h_s, h_t) = vocabulary, sizes
    made = Case(
        rng.normal(size=(*shape, h_s)),
        rng.normal(size=(*shape, h_t)),
        rng.normal(size=(v_s, h_s)),
        rng.normal(size=(v_t, h_t)),
        rng.normal(size=v_s) if bias else None,
        (rng.normal(size=(2, h_s)), rng.normal(size=(v_s, 2))) if low_rank else None,
        student or {},
        teacher or {},
    )
    if k is not None:
        made.lists = most_probable(made, k, temperature)
    return made


def most_probable(case: Case, k: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's k most probable tokens; the second position has one less, padded."""
    logits = case.teacher_hidden @ case.teacher_head.T / temperature
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    indices = np.argsort(-logs, axis=-1)[..., :k]
    logs = np.take_along_axis(logs, indices, -1)
    logs.reshape(-1, k)[1:2, k - 1], indices.reshape(-1, k)[1:2, k - 1] = np.nan, -1
    return logs, indices


def logits(out: torch.Tensor, scale: float = 1.0, softcap: float | None = None) -> torch.Tensor:
    """What the models do with the output of their heads."""
    out = scale * out
    return out if softcap is None else softcap * torch.tanh(out / softcap)


def bucketed(x: torch.Tensor, common: int) -> torch.Tensor:
    """Logits with one token for those past the common ones."""
    outside = torch.cat((x[..., common:], torch.full_like(x[..., :1], -torch.inf)), dim=-1)
    return torch.cat((x[..., :common], torch.logsumexp(outside, -1, keepdim=True)), dim=-1)


def expected(
    loss: Any,
    case: Case,
    *,
    mask: np.ndarray | None = None,
    reduction: str = "mean",
    denominator: Any = None,
    labels: np.ndarray | None = None,
    label_weight: float = 1.0,
    ignore_index: int = -100,
    vocab: str = "strict",
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Value, and by name the gradients of the value or of the sum of values."""

    leaves = {name: torch.tensor(a).requires_grad_() for name, a in case.student_arrays().items()}
    kept = np.ones(case.student_hidden.shape[:-1], bool) if mask is None else mask.astype(bool)
    kept = torch.from_numpy(kept)
    states = leaves["states"][kept]
    out = states @ leaves["head.weight"].T
    if "head.bias" in leaves:
        out = out + leaves["head.bias"]
    if "head.low_rank[0]" in leaves:
        out = (
            out
            + case.factor * (states @ leaves["head.low_rank[0]"].T) @ leaves["head.low_rank[1]"].T
        )
    s = logits(out, **case.student)
    if case.lists is not None:
        lists = am.TopK(*(torch.from_numpy(a)[kept] for a in case.lists))
        values = loss(s, lists, reduction="none")
    else:
        other, head = torch.from_numpy(case.teacher_hidden), torch.from_numpy(case.teacher_head)
        t = logits(other[kept] @ head.T, **case.teacher)
        common = min(s.shape[-1], t.shape[-1])
        pair = (bucketed(s, common), bucketed(t, common)) if vocab == "common" else (s, t)
        values = loss(*pair, reduction="none")
    if labels is not None:
        wanted = torch.from_numpy(labels)[kept]
        values = values + label_weight * torch.nn.functional.cross_entropy(
            s, wanted, reduction="none", ignore_index=ignore_index
        )
    if reduction == "none":
        value = torch.zeros(kept.shape, dtype=torch.float64)
        value[kept] = values
    else:
        value = values.sum()
        if reduction == "mean":
            value = value / (denominator or max(1, len(values)))
    grads = torch.autograd.grad(value.sum(), list(leaves.values()))
    return value.detach().numpy(), {k: g.numpy() for k, g in zip(leaves, grads, strict=True)}


def on(array, options):
    return {
        name: array(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def same_gradient(got, wanted):
    """Raise AssertionError unless a Hidden of gradients has those, and no others."""
    found = got.arrays()
    assert list(found) == list(wanted)
    for name, mine in found.items():
        same(mine, wanted[name])


def same(got, wanted):
    assert str(got.dtype).endswith("float64")
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=2e-14, atol=2e-14)


def close(library, got, wanted, scale=1.0):
    got = library.numpy(got)
    assert got.dtype == library.dtype
    np.testing.assert_allclose(got, wanted, rtol=64 * library.eps, atol=64 * library.eps * scale)
