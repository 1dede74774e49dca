"""Row programs: what is traced, what simplifying keeps, and in which order it is computed.

Graphs are evaluated node by node in double precision, by the interpreter below.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import amidmath as am
from amidmath.compiler.graph import (
    CONST,
    FOLDED,
    REDUCTIONS,
    ROW,
    TOKEN,
    Builder,
    UnsupportedError,
    reachable,
)
from amidmath.compiler.program import row_program
from amidmath.compiler.schedule import scheduled
from amidmath.compiler.simplify import cost, simplified
from amidmath.compiler.stages import staged
from amidmath.compiler.trace import FLOAT64, trace
from amidmath.divergences import REGISTRY
from amidmath.rows.forms import RowForm

ORDERS = ("pr", "rp", "qr", "rq")
LOSSES = [
    pytest.param(am.AMiD(REGISTRY[name](*params), order=order, alpha=alpha, lam=0.3), id=id_)
    for (name, params), order, alpha in zip(
        [(name, cls.examples[0]) for name, cls in sorted(REGISTRY.items())],
        itertools.cycle(ORDERS),
        itertools.cycle((-1.0, 0.5, 1.0, 3.0, math.inf)),
        strict=False,
    )
    for id_ in [f"{name}-{order}-{alpha:g}"]
]


def roots_of(traced):
    return [traced.value, *(p for p in traced.partials if p is not None)]


class Interpreter:
    """The numbers of one row: arrays over the tokens, and plain numbers."""

    def __init__(self, student, teacher):
        self.inputs = student, teacher
        self.known = {}

    def __call__(self, node):
        for n in reachable([node]):
            if n not in self.known:
                with np.errstate(all="ignore"):
                    self.known[n] = self.computed(n, [self.known[a] for a in n.args])
        return self.known[node]

    def computed(self, node, args):
        if node.op == "const":
            return node.value
        if node.op == "input":
            return self.inputs[node.value]
        if node.op == "iota":
            return np.arange(len(self.inputs[0]))
        if node.op == "select":
            return np.where(*args)
        if node.op == "at":
            return np.broadcast_to(args[1], len(self.inputs[0]))[int(args[0])]
        if node.op in REDUCTIONS:
            return getattr(np, node.op)(args[0])
        if node.op == "not":
            return np.logical_not(args[0])
        if node.op == "div":
            return np.divide(*args)
        if node.op in ("exp", "expm1", "log", "log1p", "log1p_near", "sqrt", "asin"):
            known_as = {"log1p_near": "log1p", "asin": "arcsin"}
            return getattr(np, known_as.get(node.op, node.op))(args[0])
        if node.op in ("and", "or"):
            return getattr(np, f"logical_{node.op}")(*args)
        return FOLDED[node.op](*args)


def row(seed, size=7, zeros=False):
    student, teacher = 2.0 * np.random.default_rng(seed).normal(size=(2, size))
    if zeros:
        student[1] = teacher[1] = teacher[2] = student[4] = -np.inf
    return student, teacher


def evaluated(roots, rows):
    interpret = Interpreter(*rows)
    return [np.array(interpret(root), dtype=float) for root in roots]


# ---------------------------------------------------------------------------------------------
# Tracing


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_divergence_has_a_program(name, order):
    divergence = REGISTRY[name](*REGISTRY[name].examples[0])
    loss = am.AMiD(divergence, order=order, alpha=0.5, lam=0.3)
    program = row_program(RowForm(loss.block), (True, True), False)
    value, *partials = program.traced.value, *program.traced.partials
    assert value.kind == ROW
    assert all(p is not None for p in partials)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "zeros"])
def test_trace_computes_what_the_block_does(loss, zeros):
    student, teacher = row(1, zeros=zeros)
    traced = trace(loss.block, (True, True), FLOAT64)
    value, *partials = evaluated(roots_of(traced), (student, teacher))
    wanted, grads = loss.value_and_grad(
        student, teacher, wrt=("student", "teacher"), backend="reference"
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-13)
    if np.isfinite(wanted):
        for got, grad in zip(partials, grads, strict=True):
            scale = np.abs(grad).max()
            np.testing.assert_allclose(np.broadcast_to(got, 7), grad, rtol=0, atol=1e-13 * scale)


def unsupported(u, xp):
    return xp.where(u > 0.0, xp.tan(u), 0.0)


def test_a_function_without_a_program_is_unsupported():
    loss = am.AMiD(am.FDivergence(unsupported, smooth=True))
    with pytest.raises(UnsupportedError, match="tan"):
        row_program(RowForm(loss.block), (True, True), False)


@pytest.mark.parametrize(
    "block",
    [
        lambda x, y, needs, xp: (xp.sum(x, axis=0), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x * np.ones(3), axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x**0.3, axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x if x > 0 else y, axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(x[..., :2], axis=-1), (None, None)),
        lambda x, y, needs, xp: (xp.sum(xp.zeros_like(x) + 1.0, axis=-1), (None, None)),
    ],
    ids=["axis", "another array", "power", "decision", "index", "sum of a constant"],
)
def test_what_cannot_be_traced_says_so(block):
    with pytest.raises(UnsupportedError):
        trace(block, (False, False), FLOAT64)


# ---------------------------------------------------------------------------------------------
# Building and simplifying


def test_equal_nodes_are_one():
    b = Builder()
    x, y = b.leaf("input", 0, TOKEN), b.leaf("input", 1, TOKEN)
    assert b.apply("add", x, y) is b.apply("add", y, x)
    assert b.apply("sub", x, y) is not b.apply("sub", y, x)
    assert b.const(0.0) is not b.const(-0.0)
    assert b.const(1.0) is not b.const(True)
    assert b.const(math.nan) is b.const(math.nan)


@pytest.mark.parametrize("op", sorted(set(FOLDED) - {"and", "or", "not"}))
def test_constants_fold_as_hardware_computes(op):
    """To infinities and NaN where Python raises."""
    b = Builder()
    interpret = Interpreter(np.zeros(1), np.zeros(1))
    arity = 2 if op in ("add", "sub", "mul", "div", "lt", "le", "eq", "ne") else 1
    for values in itertools.product(
        (0.0, -0.0, 1.0, -2.0, 1e308, math.inf, -math.inf), repeat=arity
    ):
        folded = b.apply(op, *map(b.const, values))
        assert folded.kind == CONST
        with np.errstate(all="ignore"):
            node = type(folded)(op, (), None, CONST, "real", 0)
            wanted = interpret.computed(node, [np.float64(v) for v in values])
        np.testing.assert_allclose(folded.value, wanted, rtol=1e-15, err_msg=f"{op}{values}")


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "zeros"])
def test_simplifying_keeps_values_and_saves_work(loss, zeros):
    traced = trace(loss.block, (True, True), FLOAT64)
    before = roots_of(traced)
    after = simplified(traced.builder, before)
    assert cost(reachable(after)) <= cost(reachable(before))
    rows = row(2, zeros=zeros)
    for old, new in zip(evaluated(before, rows), evaluated(after, rows), strict=True):
        size = np.abs(old).max()
        if np.isfinite(size):
            np.testing.assert_allclose(new, old, rtol=0, atol=1e-13 * size)
        else:
            np.testing.assert_array_equal(np.isinf(new), np.isinf(old))


def test_no_factor_of_a_shared_exponential_overflows():
    """Σ√(xy) is e^-800 here, far below what a float32 holds."""
    x = np.array([[0.0, -1600.0, -1700.0]], np.float32)
    y = np.array([[-1600.0, 0.0, -1e4]], np.float32)
    (by_x, by_y) = am.Renyi(0.5).value_and_grad(x, y, backend="compiled")[1]
    assert np.isfinite(by_x).all()
    assert np.isfinite(by_y).all()


def test_guards_are_dropped_where_the_condition_holds():
    b = Builder()
    x = b.leaf("input", 0, TOKEN)
    near = b.apply("lt", x, b.const(1.0))
    guarded = b.apply("exp", b.apply("select", near, x, b.const(0.0)))
    root = b.reduce("sum", b.apply("select", near, guarded, b.const(2.0)))
    (simpler,) = simplified(b, [root])
    assert simpler.args[0].args[1] is b.apply("exp", x)


# ---------------------------------------------------------------------------------------------
# Numbers apart from structure


def structure(loss, double=False):
    return row_program(RowForm(loss.block), (True, False), double).structure


def test_losses_that_differ_in_numbers_share_their_structure():
    """Unless numbers happen to be equal, which are then one."""
    loss = am.AMiD(am.AlphaBeta(0.21, 0.74), alpha=0.31, lam=0.15, temperature=2.3)
    other = am.AMiD(am.AlphaBeta(0.34, 0.62), alpha=0.43, lam=0.22, temperature=1.7)
    assert structure(loss) == structure(other)
    assert structure(loss) != structure(replace(loss, order="qr"))
    assert structure(loss) != structure(replace(loss, alpha=1.0))


def listed(roots):
    """The graph as it is, whatever its nodes are called."""
    place = {node: j for j, node in enumerate(reachable(roots))}
    return [(n.op, repr(n.value), *(place[a] for a in n.args)) for n in place]


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_programs_of_one_digest_are_one_graph(name):
    """Numbers are told apart from structure before the graph without them is made."""
    divergence = REGISTRY[name](*REGISTRY[name].examples[0])
    seen = {}
    for alpha, lam in ((0.31, 0.15), (0.43, 0.22), (0.31, 0.31), (1.0, 0.15), (-1.0, 0.22)):
        form = RowForm(am.AMiD(divergence, order="qr", alpha=alpha, lam=lam).block, scaled=True)
        program = row_program(form, (True, False, False), False)
        graph = listed(program.traced.roots)
        assert seen.setdefault(program.structure, graph) == graph
        assert program.given == (0,)
    assert len(seen) < 5


def test_one_compilation_serves_every_alpha(monkeypatch):
    cpu = pytest.importorskip("amidmath.backends.llvm_kernels.kernels", exc_type=ImportError)
    compiled = []
    monkeypatch.setattr(cpu, "_KERNELS", type(cpu._KERNELS)(most=4))
    original = cpu._compiled
    monkeypatch.setattr(cpu, "_compiled", lambda *args: compiled.append(1) or original(*args))
    rows = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    for alpha in (0.3, 0.4, -0.7):
        loss = am.AMiD(order="pr", alpha=alpha, lam=0.25)
        value, grad = loss.value_and_grad(*rows, backend="compiled")
        wanted, wanted_grad = loss.value_and_grad(*rows, backend="reference")
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        np.testing.assert_allclose(grad, wanted_grad, rtol=0, atol=1e-7)
    assert len(compiled) == 1


# ---------------------------------------------------------------------------------------------
# Order


@pytest.mark.parametrize("keeping", [False, True], ids=["no buffers", "buffers"])
@pytest.mark.parametrize("loss", LOSSES[::3])
def test_nothing_is_used_before_it_is_known(loss, keeping):
    program = row_program(RowForm(loss.block), (True, True), False).scheduled(keeping)
    known = set()
    for at, sweep in enumerate(program.sweeps):
        kept = {n for n, (_, filled) in program.buffers.items() if filled < at}
        needed, stack = set(), list(sweep.roots)
        while stack:
            node = stack.pop()
            if node in needed or node in kept:
                continue
            needed.add(node)
            if node.op in REDUCTIONS:
                assert node in known, f"{node.op} is used in sweep {at}, which does not know it"
            else:
                stack.extend(node.args)
        known |= set(sweep.reductions)
    for node in reachable([program.value]):
        assert node.op not in REDUCTIONS or node in known
    outputs = [j for sweep in program.sweeps for j, _ in sweep.outputs]
    assert sorted(outputs) == [0, 1]
    assert keeping or not program.buffers


def test_buffers_are_filled_once_and_read_later():
    program = row_program(RowForm(am.AMiD(alpha=0.5).block), (True, False), False).scheduled(True)
    assert program.buffers
    for node, (_, filled) in program.buffers.items():
        assert node.kind == TOKEN
        assert [at for at, s in enumerate(program.sweeps) if node in s.kept] == [filled]


def test_a_reduction_of_reductions_takes_as_many_sweeps():
    b = Builder()
    x = b.leaf("input", 0, TOKEN)
    node = x
    for _ in range(3):
        node = b.apply("sub", x, b.reduce("max", b.apply("exp", node)))
    value = b.reduce("sum", node)
    assert len(scheduled(value, [None, None], False).sweeps) == 4


# ---------------------------------------------------------------------------------------------
# Stages


def stages_of(program):
    for at, sweep in enumerate(program.sweeps):
        yield at, sweep, staged(sweep, program.buffers, at)


@pytest.mark.parametrize("loss", LOSSES[::3])
def test_stages_do_what_the_sweep_does_in_an_order_in_which_it_can_be_done(loss):
    program = row_program(RowForm(loss.block), (True, True), False).scheduled(True)
    for at, sweep, stages in stages_of(program):
        assert sorted(n.order for s in stages for n in s.reductions) == sorted(
            n.order for n in sweep.reductions
        )
        assert sorted(n.order for s in stages for n in s.kept) == sorted(
            n.order for n in sweep.kept
        )
        # A gradient may be written over the logits, which no stage reads afterwards.
        assert [s.outputs for s in stages] == [[] for _ in stages[1:]] + [sweep.outputs]
        passed, kept = {}, set()
        for stage in stages:
            assert stage.given == passed
            assert stage.there == kept
            assert not set(stage.passed.values()) & set(passed.values())
            assert not passed.keys() & stage.passed.keys()
            assert all(n.type == "real" for n in stage.passed)
            assert set(stage.inputs(program.buffers, at)) <= {
                n for n in reachable(sweep.roots) if n.op == "input"
            }
            passed, kept = passed | stage.passed, kept | set(stage.kept)


def test_a_long_chain_is_cut_and_a_short_one_is_not():
    b = Builder()
    node = b.leaf("input", 0, TOKEN)
    lengths = []
    for _ in range(12):
        node = b.apply("exp", b.apply("neg", node))
        program = scheduled(b.reduce("sum", node), [None, None], True)
        ((_, _, stages),) = stages_of(program)
        lengths.append(len(stages))
        for stage in stages[:-1]:
            assert len(stage.passed) == 1, "a chain passes on its last number only"
    assert lengths == sorted(lengths)
    assert lengths[0] == 1
    assert lengths[-1] > 3


def test_what_is_cheap_is_not_passed_on_but_computed_again():
    b = Builder()
    x = b.leaf("input", 0, TOKEN)
    centred = b.apply("sub", x, b.leaf("scale", None, ROW))
    inside = b.apply("lt", centred, b.const(0.0))
    node = centred
    for _ in range(6):
        node = b.apply("exp", b.apply("neg", node))
    root = b.apply("select", inside, node, centred)
    program = scheduled(b.reduce("sum", root), [None, None], True)
    ((_, _, stages),) = stages_of(program)
    assert len(stages) > 1
    assert not {x, centred, inside} & {n for s in stages for n in s.passed}


def test_truth_values_and_numbers_are_kept_where_computing_them_again_costs_more():
    b = Builder()
    x = b.leaf("input", 0, TOKEN)
    total = b.reduce("sum", b.apply("select", (odd := _condition(b, x)), x, b.const(0.0)))
    later = b.apply("select", odd, b.apply("mul", x, total), b.const(1.0))
    program = scheduled(b.reduce("sum", later), [None, None], True)
    assert set(program.buffers) == {odd}


def _condition(b, x):
    size = b.apply("abs", x)
    inside = b.apply("lt", size, b.const(2.0))
    return b.apply("and", inside, b.apply("ne", b.apply("mul", size, size), b.const(1.0)))
