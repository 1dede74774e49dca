"""Under torch.compile: values, both gradients, no warning, and few graphs, whatever α is."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch._dynamo.utils import counters

import amidmath as am

INF = float("inf")
MASK = torch.tensor([True, False, True, True])


def logits(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for _ in range(2))


def leaves(arguments):
    floats = [isinstance(a, torch.Tensor) and a.is_floating_point() for a in arguments]
    made = [
        a.clone().requires_grad_() if leaf else a for a, leaf in zip(arguments, floats, strict=True)
    ]
    return made, [a for a, leaf in zip(made, floats, strict=True) if leaf]


def results(function, arguments):
    given, by = leaves(arguments)
    value = function(*given)
    grads = torch.autograd.grad(value.sum(), by, allow_unused=True)
    return value.detach(), *(
        torch.zeros_like(a) if g is None else g for g, a in zip(grads, by, strict=True)
    )


def graphs(function, *calls, backend="aot_eager", **options):
    """How many graphs the calls take, each of which must give what is computed without them."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(function, fullgraph=True, backend=backend, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"torch\.jit")  # what Inductor imports
        for arguments in calls:
            got = results(compiled, arguments)
            torch.testing.assert_close(got, results(function, arguments), rtol=1e-4, atol=1e-6)
    return counters["stats"]["unique_graphs"]


AB = am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.3)


@pytest.mark.parametrize(
    "function",
    [
        lambda s, t: AB(s, t),
        lambda s, t: AB(s, t, mask=MASK, reduction="none"),
        lambda s, t: AB(s, t, MASK, denominator=3),
        lambda s, t: am.AMiD()(s, t),
        lambda s, t: am.AMiD(alpha=s[:, 0], lam=torch.sigmoid(s[:, 1]))(s, t),
        lambda s, t: (0.5 * am.AMiD() + 0.5 * am.AMiD(am.Renyi(2.0)))(s, t),
        lambda s, t: am.AMiD(am.FDivergence(lambda u, xp: (u - 1) ** 2))(s, t),
        lambda s, t: am.AlphaJensenShannon()(s, t),
        lambda s, t: am.KL()(s.log_softmax(-1), t.log_softmax(-1)),
        lambda s, t: am.alpha_mixture(s, t, alpha=0.5, lam=0.3),
        lambda s, t: am.log_falpha_mean(torch.stack([s, t]), alpha=0.5),
        lambda s, t: AB(s, am.top_k(t.detach(), 3)),
        lambda s, t: AB.value_and_grad(s, t)[0] + s.sum() + t.sum(),
        lambda s, t: AB(s, t, backend="compiled"),
        lambda s, t: AB(s.half(), t.half()),
    ],
)
def test_one_graph_without_a_warning(function):
    assert graphs(function, logits(4, 8)) == 1


def test_more_rows_than_a_chunk():
    assert graphs(lambda s, t: AB(s, t), logits(1030, 1024), logits(1040, 1024)) == 2


def test_any_shape():
    calls = [logits(n, v) for n, v in ((4, 8), (5, 9), (7, 12))]
    assert graphs(lambda s, t: AB(s, t), *calls, dynamic=True) == 1
    assert graphs(lambda s, t: AB(s, t), *calls) == 2


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_schedule_of_alpha(dynamic):
    """One graph for the first, and one for all others but the infinite ones."""
    calls = [(*logits(4, 8), alpha) for alpha in (0.1, 0.2, -1.0, 1.0, 0.3, 5.0, -3.0, 0.4)]
    assert graphs(lambda s, t, a: am.AMiD(alpha=a, lam=0.2)(s, t), *calls, dynamic=dynamic) <= 2
    calls += [(*logits(4, 8), alpha) for alpha in (INF, -INF, 0.5)]
    assert graphs(lambda s, t, a: am.AMiD(alpha=a, lam=0.2)(s, t), *calls, dynamic=dynamic) <= 4


def test_schedules_of_other_numbers():
    numbers = (0.1, 0.2, 0.5, 0.9)
    for function in (
        lambda s, t, a: am.AMiD(lam=a)(s, t),
        lambda s, t, a: am.AMiD(temperature=a)(s, t),
        lambda s, t, a: (a * am.AMiD(lam=a) + (1 - a) * am.AMiD(order="qr", lam=a))(s, t),
        lambda s, t, a: am.AMiD(am.AlphaBeta(a, 0.7))(s, t),
        lambda s, t, a: am.alpha_mixture(s, t, alpha=a, lam=0.3),
        lambda s, t, a: am.AMiD()(s, t, denominator=a),
    ):
        assert graphs(function, *((*logits(4, 8), number) for number in numbers)) == 2


def test_a_function_of_the_loss():
    """Each kind of loss has a graph, another number of the same has none of its own."""
    losses = [am.AMiD(alpha=a) for a in (0.1, 0.2, 0.3, -1.0, 1.0)]
    losses += [am.AMiD(am.Renyi(2.0)), am.AMiD(am.Renyi(3.0)), 0.5 * am.AMiD() + 0.5 * AB]
    assert graphs(lambda s, t, loss: loss(s, t), *((*logits(4, 8), loss) for loss in losses)) <= 5


HIDDEN_MASK = torch.tensor([True, False, True, True, True, True])
LABELS = torch.tensor([1, -100, 2, 0, 5, 6])


def hidden(rows=6, vocabulary=9):
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, 4), (vocabulary, 4), (rows, 5), (vocabulary, 5))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize(
    "function",
    [
        lambda h, w, t, u: AB(am.Hidden(h, w), am.Hidden(t, u)),
        lambda h, w, t, u: AB(am.Hidden(h, w), am.Hidden(t, u), reduction="none").square(),
        lambda h, w, t, u: AB(
            am.Hidden(h, w), am.Hidden(t, u), HIDDEN_MASK, labels=LABELS, label_weight=0.3
        ),
        lambda h, w, t, u: AB(am.Hidden(h, am.Head(w, bias=w[:, 0], softcap=9.0)), am.Hidden(t, u)),
        lambda h, w, t, u: AB(am.Hidden(h, w), am.top_k(t @ u.T, 3)),
        lambda h, w, t, u: AB(am.Hidden(h, w), t @ u.T),
        lambda h, w, t, u: AB(h @ w.T, am.Hidden(t, u), labels=LABELS),
        lambda h, w, t, u: am.AMiD(alpha=h[:, 0])(am.Hidden(h, w), am.Hidden(t, u)),
        lambda h, w, t, u: AB(am.Hidden(h.half(), w), am.Hidden(t, u)),
        lambda h, w, t, u: (
            AB.value_and_grad(am.Hidden(h.detach(), w.detach()), am.Hidden(t, u))[1].states
            * h
            * w.sum()
        ),
    ],
)
def test_hidden_states(function):
    def of_teacher(h, w, t, u):
        return function(h, w, t.detach(), u.detach())

    assert graphs(of_teacher, hidden()) == 1


def test_hidden_states_under_a_schedule_and_of_any_number():
    def function(h, w, t, u, alpha):
        return am.AMiD(alpha=alpha)(am.Hidden(h, w), am.Hidden(t.detach(), u.detach()))

    calls = [(*hidden(rows), alpha) for rows, alpha in ((6, 0.1), (7, 0.2), (8, 1.0), (9, 0.3))]
    assert graphs(function, *calls, dynamic=True) == 1
    assert graphs(function, *calls) == 2


def test_inductor():
    calls = [(*logits(n, 8), alpha) for n, alpha in ((4, 0.1), (5, 0.2), (6, 0.3))]
    function = lambda s, t, a: am.AMiD(alpha=a)(s, t)  # noqa: E731
    assert graphs(function, *calls, backend="inductor") <= 3


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_transformations_inside(transform):
    s, t = logits(3, 4, 8)
    function = lambda s, t: transform(lambda s, t: AB(s, t))(s, t)  # noqa: E731
    torch._dynamo.reset()
    got = torch.compile(function, fullgraph=True, backend="aot_eager")(s, t)
    torch.testing.assert_close(got, function(s, t))


def test_what_is_traced_has_a_graph_for_each_number():
    """The reference, and what ``torch.func`` differentiates."""
    calls = [(*logits(4, 8), alpha) for alpha in (0.1, 0.2)]

    def mixture(s, t, alpha, backend=None):
        return am.alpha_mixture(s, t, alpha=alpha, lam=0.3, normalize=False, backend=backend)

    assert graphs(lambda s, t, a: mixture(s, t, a, "reference"), *calls) == 2

    def slope(s, t, alpha):
        return torch.func.grad(lambda s: mixture(s, t, alpha).square().sum())(s)

    compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")
    for arguments in calls:
        torch.testing.assert_close(compiled(*arguments), slope(*arguments))


def test_a_second_derivative_is_refused():
    s, t = logits(4, 8)
    s.requires_grad_()
    value = torch.compile(lambda s, t: AB(s, t), fullgraph=True, backend="aot_eager")(s, t)
    (slope,) = torch.autograd.grad(value, s, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):  # in torch's words
        slope.sum().backward()


def test_strict_export():
    class Module(torch.nn.Module):
        def forward(self, s, t):
            return am.AMiD(alpha=0.3)(s, t)

    rows = torch.export.Dim("rows", min=2, max=4096)
    shapes = ({0: rows}, {0: rows})
    program = torch.export.export(Module(), logits(64, 1024), dynamic_shapes=shapes, strict=True)
    others = logits(3, 1024, seed=1)
    torch.testing.assert_close(program.module()(*others), Module()(*others))
