"""The sparse loss from hidden states against the same loss of the whole logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import amidmath as am
from amidmath.integrations.torch_loop.sparse_states import sparse_from_states
from amidmath.integrations.torch_loop.states import States

V, H, K = 13, 5, 4
LOSSES = {
    "forward": am.AMiD(am.KL(), lam=0.0),
    "assistant": am.AMiD(am.KL(), order="qr", alpha=0.5, lam=0.3, temperature=2.0),
    "sum": 0.3 * am.AMiD(am.KL(), order="rp", alpha=1.0, lam=0.2)
    + 0.7 * am.AMiD(am.TotalVariation()),
}


def states_of(hidden: torch.Tensor, head: am.Head) -> States:
    return States(hidden, head, head)


class Case:
    """Hidden states, a head with all that it can have, and lists."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.hidden = draw(2, 6, H).requires_grad_()
        self.weight, self.bias = draw(V, H).requires_grad_(), draw(V).requires_grad_()
        self.a, self.b = draw(2, H).requires_grad_(), draw(V, 2).requires_grad_()
        self.top = am.top_k(3.0 * draw(2, 6, V), K)
        self.mask = torch.rand(2, 6, generator=generator) > 0.4

    @property
    def head(self) -> am.Head:
        return am.Head(
            self.weight, bias=self.bias, softcap=6.0, scale=0.7, low_rank=(self.a, self.b, 0.5)
        )

    @property
    def leaves(self) -> tuple[torch.Tensor, ...]:
        return self.hidden, self.weight, self.bias, self.a, self.b

    def logits(self) -> torch.Tensor:
        outputs = self.hidden @ self.weight.T + self.bias + 0.5 * self.hidden @ self.a.T @ self.b.T
        return 6.0 * torch.tanh(0.7 * outputs / 6.0)

    def gradients(self, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(value, self.leaves)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("chunk_rows", [None, 1, 3])
@pytest.mark.parametrize(
    ("reduction", "denominator"),
    [("mean", None), ("mean", 7.0), ("mean", torch.tensor(5)), ("sum", None), ("none", None)],
)
def test_value_and_gradients_are_the_dense_ones(
    loss: am.Loss, chunk_rows: int | None, reduction: str, denominator: Any
) -> None:
    case = Case()
    arguments = (case.top, case.mask, reduction, denominator)
    found = sparse_from_states(loss, states_of(case.hidden, case.head), *arguments, chunk_rows)
    expected = loss.sparse(case.logits(), *arguments)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(0.5, 2.0, found.numel(), dtype=found.dtype).reshape(found.shape)
    pairs = zip(
        case.gradients((weights * found).sum()),
        case.gradients((weights * expected).sum()),
        strict=True,
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradcheck(loss: am.Loss) -> None:
    case = Case()

    def value(
        hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *low_rank: torch.Tensor
    ) -> torch.Tensor:
        head = am.Head(weight, bias=bias, softcap=6.0, scale=0.7, low_rank=(*low_rank, 0.5))
        return sparse_from_states(loss, states_of(hidden, head), case.top, case.mask, chunk_rows=4)

    assert torch.autograd.gradcheck(value, case.leaves)


def test_without_a_mask_and_without_a_gradient() -> None:
    case = Case()
    with torch.no_grad():
        found = sparse_from_states(am.AMiD(), states_of(case.hidden, case.head), case.top)
    torch.testing.assert_close(found, am.AMiD().sparse(case.logits(), case.top).detach())


def test_array_parameters_have_a_value_a_position() -> None:
    case = Case()
    alpha = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(2, 6).requires_grad_()
    loss = am.AMiD(am.KL(), alpha=alpha, lam=torch.tensor(0.3, dtype=torch.float64))
    found = sparse_from_states(
        loss, states_of(case.hidden, case.head), case.top, case.mask, chunk_rows=2
    )
    expected = loss.sparse(case.logits(), case.top, case.mask)
    torch.testing.assert_close(found, expected)
    (ours,), (theirs,) = (torch.autograd.grad(v, [alpha]) for v in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_positions_left_out_are_never_read() -> None:
    case, poisoned = Case(), Case()
    with torch.no_grad():
        poisoned.hidden[~case.mask] = torch.nan
        poisoned.top.log_probs[~case.mask] = torch.nan
        poisoned.top.indices[~case.mask] = 10**6
    found = [
        sparse_from_states(am.AMiD(), states_of(c.hidden, c.head), c.top, case.mask)
        for c in (case, poisoned)
    ]
    assert torch.equal(*found)
    for ours, theirs in zip(poisoned.gradients(found[1]), case.gradients(found[0]), strict=True):
        assert torch.equal(ours, theirs)


def test_nothing_is_kept() -> None:
    case = Case()
    value = sparse_from_states(
        am.AMiD(), states_of(case.hidden, case.head), case.top, torch.zeros_like(case.mask)
    )
    assert float(value.detach()) == 0.0
    assert all(not grad.any() for grad in case.gradients(value))


def test_labels_add_the_cross_entropy() -> None:
    case = Case()
    labels = torch.arange(12).reshape(2, 6)
    labels[0, :3] = -100
    loss = am.AMiD(temperature=2.0)
    found = sparse_from_states(
        loss,
        states_of(case.hidden, case.head),
        case.top,
        case.mask,
        chunk_rows=2,
        labels=labels,
        label_weight=0.4,
    )
    kept = labels.masked_fill(~case.mask, -100).flatten()
    entropy = torch.nn.functional.cross_entropy(
        case.logits().flatten(0, 1), kept, ignore_index=-100, reduction="sum"
    )
    expected = loss.sparse(case.logits(), case.top, case.mask) + 0.4 * entropy / case.mask.sum()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(case.gradients(found), case.gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_multiplies_in_it_and_computes_in_float32(autocast: bool) -> None:
    case = Case(torch.float32 if autocast else torch.bfloat16)
    loss = LOSSES["forward"]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = sparse_from_states(
            loss, states_of(case.hidden, am.Head(case.weight)), case.top, chunk_rows=5
        )
    half = (case.hidden.bfloat16(), case.weight.bfloat16())
    expected = loss.sparse((half[0] @ half[1].T).float(), case.top)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0.0)
    ours = torch.autograd.grad(value, [case.hidden, case.weight])
    theirs = torch.autograd.grad(expected, [case.hidden, case.weight])
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).norm() / other.norm()) < 0.01


class _Largest(TorchDispatchMode):
    """Notes the most numbers that any result has."""

    numel = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_logits_are_never_whole() -> None:
    vocabulary, rows, chunk = 1000, 96, 8
    hidden = torch.randn(rows, 2, requires_grad=True)
    head = am.Head(torch.randn(vocabulary, 2, requires_grad=True))
    top = am.top_k(torch.randn(rows, vocabulary), 3)
    with _Largest() as seen:
        sparse_from_states(am.AMiD(), states_of(hidden, head), top, chunk_rows=chunk).backward()
    assert seen.numel <= chunk * vocabulary


CHANGES: dict[str, tuple[Callable[[Case], dict[str, Any]], type[Exception], str]] = {
    "no lists": (lambda case: {"top_k": None}, TypeError, "top_k must be an am.TopK"),
    "lists of other positions": (
        lambda case: {"top_k": am.TopK(*(a[:, 1:] for a in case.top))},
        ValueError,
        "top_k must have log_probs and indices of the positions",
    ),
    "no token": (
        lambda case: {"top_k": case.top._replace(indices=case.top.indices + V)},
        ValueError,
        "teacher.indices",
    ),
    "hidden of another size": (
        lambda case: {"states": states_of(case.hidden[..., 1:], case.head)},
        ValueError,
        "states.hidden must have a last axis",
    ),
    "reduction": (lambda case: {"reduction": "max"}, ValueError, "reduction"),
    "chunk_rows": (lambda case: {"chunk_rows": 0}, ValueError, "chunk_rows"),
}


@pytest.mark.parametrize(("change", "error", "says"), CHANGES.values(), ids=CHANGES)
def test_what_does_not_fit(
    change: Callable[[Case], dict[str, Any]], error: type[Exception], says: str
) -> None:
    case = Case()
    given = {"states": states_of(case.hidden, case.head), "top_k": case.top} | change(case)
    with pytest.raises(error, match=says):
        sparse_from_states(am.AMiD(), **given)
