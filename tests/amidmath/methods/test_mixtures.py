"""Named methods against the formulas of their papers, in 60 digits, and what they say of λ."""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
import pytest
from definitions import log_softmax

import amidmath as am
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

METHODS = am.methods.METHODS
mpf = mpmath.mpf
STEP = mpf(10) ** -20


def test_the_names():
    assert sorted(METHODS) == [
        *("abkd", "akl", "amid", "csd", "distillm", "distillm2", "gkd", "jeffreys", "kl"),
        *("minillm", "reverse_kl", "taid", "tvd", "wsd"),
    ]
    functions = {name for name in am.methods.__all__ if name in METHODS}
    assert functions == set(METHODS)
    for name, method in METHODS.items():
        assert method.name == name
        assert method.function is getattr(am.methods, name)
        assert list(method.parameters)[-1] == "temperature"
        assert method.parameters["temperature"] == 1.0


def test_the_parameters():
    assert {n: m.parameters for n, m in METHODS.items() if len(m.parameters) > 1} == {
        "abkd": {"alpha": 0.2, "beta": 0.7, "temperature": 1.0},
        "akl": {"mu": 0.5, "temperature": 1.0},
        "amid": {"divergence": "kl", "order": "pr", "alpha": -1.0, "lam": 0.1, "temperature": 1.0},
        "csd": {"first": "student", "second": "student", "temperature": 1.0},
        "distillm": {"kind": "skl", "skew": 0.1, "temperature": 1.0},
        "distillm2": {
            "skew_teacher": 0.1,
            "skew_student": 0.1,
            "beta": 1.0,
            "detach_mixture": False,
            "temperature": 1.0,
        },
        "gkd": {"beta": 0.5, "temperature": 1.0},
        "taid": {"t": 0.4, "temperature": 1.0},
        "wsd": {"reverse_weight": 0.5, "temperature": 1.0},
    }


# ---------------------------------------------------------------------------------------------
# The formulas, from the papers, of distributions as lists of mpmath numbers. Those that hold
# something constant get it from the pair at the point where they are differentiated.


def kl(x, y):
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(x, y, strict=True))


def mixed(weight, x, y):
    return [mpf(weight) * a + (1 - mpf(weight)) * b for a, b in zip(x, y, strict=True)]


def geometric(weight, x, y):
    raw = [a ** mpf(weight) * b ** (1 - mpf(weight)) for a, b in zip(x, y, strict=True)]
    return [a / mpmath.fsum(raw) for a in raw]


def jsd(beta):
    def loss(p, q, held):
        m = mixed(beta, p, q)
        return mpf(beta) * kl(p, m) + (1 - mpf(beta)) * kl(q, m)

    return loss


def alpha_beta(alpha, beta):
    a, b = mpf(alpha), mpf(beta)

    def loss(p, q, held):
        pairs = list(zip(p, q, strict=True))
        return (
            -1
            / (a * b)
            * mpmath.fsum(
                x**a * y**b - a / (a + b) * x ** (a + b) - b / (a + b) * y ** (a + b)
                for x, y in pairs
            )
        )

    return loss


def concrete_score(first, second):
    def loss(p, q, held):
        uniform = [mpf(1) / len(p)] * len(p)
        w = dict(zip(("teacher", "student", "uniform"), (*held, uniform), strict=True))
        delta = [mpmath.log(y / x) for x, y in zip(p, q, strict=True)]
        pairs = itertools.product(range(len(p)), repeat=2)
        return mpmath.fsum(
            w[first][i] * w[second][j] * (delta[i] - delta[j]) ** 2 / 2 for i, j in pairs
        )

    return loss


def head_of(p, mu):
    """The most probable tokens, one after the other, until they have the mass."""
    order, head = sorted(range(len(p)), key=lambda i: -p[i]), []
    while mpmath.fsum(p[i] for i in head) < mu:
        head.append(order[len(head)])
    return head


def adaptive(mu):
    def loss(p, q, held):
        gaps = [abs(x - y) for x, y in zip(*held, strict=True)]
        weight = mpmath.fsum(gaps[i] for i in head_of(held[0], mpf(mu))) / mpmath.fsum(gaps)
        return weight * kl(p, q) + (1 - weight) * kl(q, p)

    return loss


def forward(p, q, held):
    return kl(p, q)


def reverse(p, q, held):
    return kl(q, p)


def both(p, q, held):
    return kl(p, q) + kl(q, p)


def variation(p, q, held):
    return mpmath.fsum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2


def weighted_sum(p, q, held):
    return mpf("0.75") * kl(p, q) + mpf("0.25") * kl(q, p)


CASES = {
    "kl": ("any", {}, forward),
    "reverse_kl": ("any", {}, reverse),
    "minillm": ("any", {}, reverse),
    "jeffreys": ("any", {}, both),
    "tvd": ("any", {}, variation),
    "wsd": ("any", {"reverse_weight": 0.25}, weighted_sum),
    "gkd": ("any", {"beta": 0.25}, jsd(0.25)),
    "gkd, half": ("any", {}, jsd(0.5)),
    "distillm skl": (
        *("any", {"kind": "skl", "skew": 0.125}),
        lambda p, q, held: kl(p, mixed(0.125, p, q)),
    ),
    "distillm srkl": (
        *("any", {"kind": "srkl", "skew": 0.125}),
        lambda p, q, held: kl(q, mixed(0.125, q, p)),
    ),
    "distillm2 teacher": (
        *("teacher", {"skew_teacher": 0.125, "beta": 1.25}),
        lambda p, q, held: mpf("0.75") * kl(p, mixed(0.125, p, q)),
    ),
    "distillm2 student": (
        *("student", {"skew_student": 0.125, "beta": 1.25}),
        lambda p, q, held: mpf("1.25") * kl(q, mixed(0.125, q, p)),
    ),
    "distillm2 student, detached": (
        *("student", {"skew_student": 0.125, "detach_mixture": True}),
        lambda p, q, held: kl(q, mixed(0.125, held[1], held[0])),
    ),
    "taid": ("any", {"t": 0.375}, lambda p, q, held: kl(geometric(0.375, *held), q)),
    "abkd": ("any", {"alpha": 0.25, "beta": 0.75}, alpha_beta(0.25, 0.75)),
    "abkd, sum not 1": ("any", {"alpha": -0.5, "beta": 2.0}, alpha_beta(-0.5, 2.0)),
    "akl": ("any", {}, adaptive(0.5)),
    "akl, long head": ("any", {"mu": 0.875}, adaptive(0.875)),
    "csd": ("any", {}, concrete_score("student", "student")),
    "csd TS": (
        *("any", {"first": "teacher", "second": "student"}),
        concrete_score("teacher", "student"),
    ),
    "csd US": ("any", {"first": "uniform"}, concrete_score("uniform", "student")),
    "amid": (
        *("any", {"divergence": "reverse_kl", "order": "pr", "alpha": 1.0, "lam": 0.125}),
        lambda p, q, held: kl(geometric(0.125, p, q), p),
    ),
}
by_case = pytest.mark.parametrize("case", CASES)


def logits(dtype):
    """Student and teacher: unrelated, close, and both sure of one token."""
    rng = np.random.default_rng(20240402)
    student, teacher = 1.5 * rng.normal(size=(2, 3, 6))
    teacher[1] = student[1] + 0.01 * rng.normal(size=6)
    student[2, 0] += 5.0
    teacher[2, 0] += 6.0
    return student.astype(dtype), teacher.astype(dtype)


def expected(formula, student, teacher, temperature):
    """Values and gradients by the student's logits, rows of mpmath numbers."""
    values, grads = [], []
    for s, t in zip(student, teacher, strict=True):
        s, t = ([mpf(float(v)) / mpf(temperature) for v in row] for row in (s, t))
        p = [mpmath.exp(v) for v in log_softmax(t)]

        def at(step, i, s=s):
            moved = [v + step * (i == j) for j, v in enumerate(s)]
            return [mpmath.exp(v) for v in log_softmax(moved)]

        held = (p, at(0, 0))
        values.append(formula(p, held[1], held))
        grads.append(
            [
                (formula(p, at(STEP, i), held) - formula(p, at(-STEP, i), held))
                / (2 * STEP * mpf(temperature))
                for i in range(len(s))
            ]
        )
    return values, grads


def check(got, wanted, eps, size):
    """To ``eps`` of the largest of the row, and of what enters it."""
    got, wanted = np.asarray(got, dtype=float), np.array(wanted, dtype=object).astype(float)
    assert got.shape == wanted.shape
    scale = np.abs(wanted) if wanted.ndim == 1 else np.abs(wanted).max(axis=-1, keepdims=True)
    assert (np.abs(got - wanted) <= eps * size * scale).all(), (got, wanted)


@by_case
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_value_and_gradient_are_the_papers(library, case, temperature):
    source, params, formula = CASES[case]
    student, teacher = logits(library.dtype)
    method = METHODS[case.split(" ")[0].rstrip(",")]
    loss = method.losses(**params, temperature=temperature)[source]
    arrays = library.array(student), library.array(teacher)
    values, grads = expected(formula, student, teacher, temperature)
    value, grad = loss.value_and_grad(*arrays, reduction="none")
    check(library.numpy(value), values, library.eps, 60)
    check(library.numpy(grad), grads, library.eps, 60)
    mean = library.numpy(loss(*arrays))
    assert abs(float(mean) - float(mpmath.fsum(values) / len(values))) < 60 * library.eps * abs(
        mean
    )


@by_case
def test_every_differentiation_gives_the_same(any_autodiff, case):
    source, params, _ = CASES[case]
    loss = METHODS[case.split(" ")[0].rstrip(",")].losses(**params)[source]
    student, teacher = (any_autodiff.array(a) for a in logits(any_autodiff.dtype))
    _, wanted = loss.value_and_grad(student, teacher)
    _, (grad,) = any_autodiff.derivatives(lambda s: loss(s, teacher), student)
    np.testing.assert_allclose(
        grad, any_autodiff.numpy(wanted), rtol=1e3 * any_autodiff.eps, atol=1e-9
    )


# ---------------------------------------------------------------------------------------------
# Limits


@pytest.fixture(scope="module")
def pair():
    return logits("float64")


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_gkd_is_zero_at_its_ends(any_library, pair, beta):
    value, grad = am.methods.gkd(beta).value_and_grad(*map(any_library.array, pair))
    assert float(value) == 0.0
    assert not any_library.numpy(grad).any()


def test_gkd_goes_to_its_ends_continuously(pair):
    kl_pq, kl_qp = am.methods.kl()(*pair), am.methods.reverse_kl()(*pair)
    for small in (1e-3, 1e-6, 1e-9):
        assert abs(am.methods.gkd(small)(*pair) / small - kl_pq) < 20 * small
        assert abs(am.methods.gkd(1.0 - small)(*pair) / small - kl_qp) < 20 * small + 1e-6


def test_gkd_is_the_sum_of_two_amids(pair):
    beta = 0.3
    plain = beta * am.AMiD(order="pr", lam=beta) + (1 - beta) * am.AMiD(order="qr", lam=beta)
    value, grad = plain.value_and_grad(*pair)
    got, got_grad = am.methods.gkd(beta).value_and_grad(*pair)
    assert abs(got - value) < 1e-15
    np.testing.assert_allclose(got_grad, grad, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_taid_pulls_by_q_minus_the_mixture(pair, t, temperature):
    student, teacher = pair
    q = np.exp(student / temperature)
    r = np.exp(((1 - t) * student + t * teacher) / temperature)
    q, r = (a / a.sum(axis=-1, keepdims=True) for a in (q, r))
    _, grad = am.methods.taid(t, temperature).value_and_grad(student, teacher, reduction="sum")
    np.testing.assert_allclose(grad, (q - r) / temperature, atol=2e-16)


@pytest.mark.parametrize(("exponents", "limit"), [((1.0, 0.0), "kl"), ((0.0, 1.0), "reverse_kl")])
def test_abkd_at_its_limits(pair, exponents, limit):
    wanted = METHODS[limit].loss()(*pair)
    assert abs(am.methods.abkd(*exponents)(*pair) - wanted) < 1e-14
    nearly = [c + 1e-9 for c in exponents]
    assert abs(am.methods.abkd(*nearly)(*pair) - wanted) < 1e-7


def test_distillm_ends_in_both_divergences(pair):
    assert am.methods.distillm("skl", 0.0)(*pair) == am.methods.kl()(*pair)
    assert am.methods.distillm("srkl", 0.0)(*pair) == am.methods.reverse_kl()(*pair)
    for kind in ("skl", "srkl"):
        assert abs(am.methods.distillm(kind, 1.0)(*pair)) < 1e-16


def test_csd_is_twice_what_its_code_steps_along(pair):
    """The gradient of ``csd`` in the authors' code: q (δ - E_q δ), from logits."""
    student, teacher = pair
    q = np.exp(student)
    q = q / q.sum(axis=-1, keepdims=True)
    delta = student - teacher
    step = q * (delta - (q * delta).sum(axis=-1, keepdims=True))
    _, grad = (0.5 * am.methods.csd()).value_and_grad(student, teacher, reduction="sum")
    np.testing.assert_allclose(grad, step, atol=1e-14)


def test_numbers_can_be_arrays_of_one_a_position(any_library, pair):
    student, teacher = (any_library.array(a) for a in pair)
    weights = [0.1, 0.4, 0.9]
    for name, given in (
        *(("taid", "t"), ("distillm", "skew"), ("amid", "lam"), ("amid", "alpha")),
        *(("distillm2", "skew_teacher"), ("distillm2", "skew_student"), ("distillm2", "beta")),
        *(("gkd", "beta"), ("wsd", "reverse_weight"), ("akl", "mu")),
    ):
        many = METHODS[name].losses(**{given: any_library.array(weights)})
        each = [METHODS[name].losses(**{given: weight}) for weight in weights]
        for source, loss in many.items():
            got = any_library.numpy(loss(student, teacher, reduction="none"))
            rows = (any_library.numpy(o[source](student, teacher, reduction="none")) for o in each)
            wanted = [row[i] for i, row in enumerate(rows)]
            np.testing.assert_allclose(got, wanted, rtol=1e3 * any_library.eps)


# ---------------------------------------------------------------------------------------------
# DistiLLM-2's curriculum


@pytest.mark.parametrize(
    ("gap", "skew"),
    [
        (0.29999, 0.1),
        (0.27 / 0.95 - 1e-5, 0.05),
        (0.5, 0.1),
        (0.01, 0.01),
        (-0.2, 0.1),
        (-1e-5, 0.1),
    ],
)
def test_the_skew_keeps_its_product_with_the_gap(any_library, gap, skew):
    assert am.methods.distillm2_skew(gap, anchor=0.3) == pytest.approx(skew, rel=1e-9)
    got = am.methods.distillm2_skew(any_library.array([gap]), anchor=0.3)
    rtol = 1e3 * any_library.eps
    np.testing.assert_allclose(any_library.numpy(got), [skew], rtol=rtol)


def test_the_weight_of_the_students_rows_grows_to_half_of_the_training():
    steps = [am.methods.distillm2_beta(step / 8) for step in range(9)]
    assert steps == [1.0, 1.125, 1.25, 1.375, 1.5, 1.5, 1.5, 1.5, 1.5]


# ---------------------------------------------------------------------------------------------
# Method


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        (
            "gkd",
            {"beta": 0.25},
            "beta = 0.25 weighs the teacher in r = 0.25·p + 0.75·q, so λ = 0.25",
        ),
        ("distillm", {}, "skew = 0.1 weighs the teacher in r = 0.1·p + 0.9·q, so λ = 0.1 "),
        ("distillm", {"kind": "srkl"}, "weighs the student in r = 0.9·p + 0.1·q, so λ = 0.9 "),
        ("taid", {"t": 0.75}, "t = 0.75 weighs the teacher in r ∝ p^0.75·q^0.25, so λ = 0.75 "),
        ("taid", {"t": np.array([0.5])}, "t = t weighs the teacher in r ∝ p^t·q^(1 - t), so λ = t"),
        (
            "distillm2",
            {"skew_student": 0.3},
            "weighs the student in r = 0.7·p + 0.3·q, so λ = 0.7 ",
        ),
        ("distillm2", {"beta": 1.5}, "on the teacher's rows, times 0.5: skew_teacher = 0.1"),
        (
            "distillm2",
            {"beta": np.array([0.5])},
            "times (2 - beta): skew_teacher = 0.1 weighs the teacher in r = 0.1·p + 0.9·q, so λ = "
            "0.1 (λ weighs the teacher); on the student's rows, times beta: ",
        ),
        ("distillm2", {"detach_mixture": True}, "r held constant"),
        ("abkd", {"alpha": 0.3}, "alpha = 0.3 is the exponent of p"),
        ("abkd", {}, "not AMiD's α"),
        ("kl", {}, "λ = 0, the assistant is the student"),
        ("reverse_kl", {"temperature": 2.0}, "λ = 1, the assistant is the teacher"),
        ("minillm", {}, "λ = 1, the assistant is the teacher"),
        ("wsd", {"reverse_weight": 0.25}, "0.25 is the share of KL(q‖p), KL(p‖q) has 0.75"),
        ("akl", {"mu": 0.75}, "mu = 0.75 is the teacher's mass in the head"),
        ("csd", {"first": "uniform"}, "uniform × student"),
        ("amid", {"order": "rq", "lam": 0.2}, "λ = 0.2 (λ weighs the teacher), and the loss is kl"),
        ("amid", {"divergence": am.KL()}, "KL as D(p‖r)"),
    ],
)
def test_the_convention_is_said(name, params, said):
    assert said in METHODS[name].convention(**params)


@pytest.mark.parametrize("name", ["gkd", "distillm", "taid", "amid"])
def test_the_convention_is_true(name):
    """The λ that the sentence gives is the one of the loss."""
    said = METHODS[name].convention()
    loss = METHODS[name].loss()
    assert f"λ = {loss.lam:g} (λ weighs the teacher)" in said


def test_a_method_has_one_loss_or_one_for_each_source():
    for name, method in METHODS.items():
        assert method.sources == (("teacher", "student") if name == "distillm2" else ("any",))
        losses = method.losses()
        assert tuple(losses) == method.sources
        assert all(isinstance(loss, am.Loss) for loss in losses.values())
        assert all(hash(loss) == hash(method.losses()[s]) for s, loss in losses.items())
    with pytest.raises(
        ValueError, match=r"distillm2 has a loss for each source.*'teacher'.*losses"
    ):
        METHODS["distillm2"].loss()


def test_parameters_reach_the_loss():
    assert METHODS["gkd"].loss(beta=0.25, temperature=2.0) == am.methods.gkd(0.25, 2.0)
    assert METHODS["taid"].losses(t=0.5)["any"] == am.methods.taid(0.5)
    assert METHODS["distillm2"].losses(beta=1.25) == am.methods.distillm2(beta=1.25)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("abkd", "alpha"), ("abkd", "beta"), ("amid", "lam"), ("distillm", "skew")),
        *(("distillm2", "skew_teacher"), ("distillm2", "beta"), ("gkd", "beta"), ("taid", "t")),
        *(("wsd", "reverse_weight"), ("kl", "temperature")),
    ],
)
def test_losses_that_differ_in_numbers_share_their_kernels(name, number):
    def structures(value):
        losses = METHODS[name].losses(**{number: value}).values()
        forms = (RowForm(loss.block) for loss in losses)
        return [row_program(form, (True, False), double=False).structure for form in forms]

    assert structures(0.33) == structures(0.41)


def test_a_method_of_ones_own_is_registered_in_one_place(monkeypatch):
    from amidmath.methods import method

    monkeypatch.setattr(method, "METHODS", {})

    @method.method(lambda weight, **_: f"weight = {weight:g}")
    def own(weight=0.5, temperature=1.0):
        return weight * am.AMiD(temperature=temperature)

    made = method.METHODS["own"]
    assert made.parameters == {"weight": 0.5, "temperature": 1.0}
    assert made.loss(weight=2.0) == 2.0 * am.AMiD()
    assert made.convention(weight=0.25) == "weight = 0.25"

    def elsewhere(temperature=1.0):
        return am.AMiD()

    elsewhere.__name__, elsewhere.__module__ = "own", "another"
    with pytest.raises(ValueError, match=f"method 'own' is defined in {__name__}"):
        method.method(lambda **_: "")(elsewhere)


@pytest.mark.parametrize(
    ("name", "params", "error", "told"),
    [
        ("gkd", {"beta": 1.5}, ValueError, ["gkd's beta", "[0, 1]", "1.5"]),
        ("gkd", {"beta": "half"}, TypeError, ["gkd's beta", "number", "'half'"]),
        ("gkd", {"skew": 0.1}, TypeError, ["gkd", "'skew'", "0.1", "beta, temperature"]),
        ("kl", {"temperature": 0.0}, ValueError, ["kl's temperature", "positive", "0.0"]),
        ("jeffreys", {"temperature": -1}, ValueError, ["jeffreys's temperature", "-1"]),
        ("wsd", {"reverse_weight": -0.5}, ValueError, ["wsd's reverse_weight", "[0, 1]", "-0.5"]),
        ("distillm", {"kind": "rkl"}, ValueError, ["distillm's kind", "'skl', 'srkl'", "'rkl'"]),
        ("distillm", {"skew": 2.0}, ValueError, ["distillm's skew", "[0, 1]", "2.0"]),
        (
            "distillm",
            {"skew": np.array([0.5, 2.0])},
            ValueError,
            ["distillm's skew", "[0, 1]", "2.0"],
        ),
        ("distillm2", {"beta": np.array([2.0, 2.5])}, ValueError, ["distillm2's beta", "[0, 2]"]),
        ("gkd", {"beta": np.array([0.5, 1.5])}, ValueError, ["gkd's beta", "[0, 1]", "1.5"]),
        ("distillm2", {"beta": 2.5}, ValueError, ["distillm2's beta", "[0, 2]", "2.5"]),
        ("distillm2", {"skew_student": -1.0}, ValueError, ["distillm2's skew_student", "-1.0"]),
        (
            "distillm2",
            {"detach_mixture": 1},
            TypeError,
            ["distillm2's detach_mixture", "True", "1"],
        ),
        ("taid", {"t": float("nan")}, ValueError, ["taid's t", "nan"]),
        ("abkd", {"beta": float("inf")}, ValueError, ["abkd's beta", "finite", "inf"]),
        ("akl", {"mu": 1.25}, ValueError, ["akl's mu", "[0, 1]", "1.25"]),
        ("csd", {"second": "q"}, ValueError, ["csd's second", "'uniform'", "'q'"]),
        ("amid", {"divergence": "kld"}, ValueError, ["amid's divergence", "'kl'", "'kld'"]),
        ("amid", {"divergence": 1}, TypeError, ["divergence", "am.KL()", "1"]),
        ("amid", {"order": "pq"}, ValueError, ["amid's order", "'pr'", "'pq'"]),
        ("amid", {"alpha": float("nan")}, ValueError, ["amid's alpha", "nan"]),
        ("amid", {"lam": 1.5}, ValueError, ["amid's lam", "[0, 1]", "1.5"]),
    ],
)
@pytest.mark.parametrize("call", ["loss", "losses", "convention"])
def test_errors(name, params, error, told, call):
    if call == "loss" and name == "distillm2":
        call = "losses"
    with pytest.raises(error) as caught:
        getattr(METHODS[name], call)(**params)
    for text in told:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: am.methods.distillm2_skew(0.1, 0.1, base=0.001), ["base", "[0.01, 1]", "0.001"]),
        (lambda: am.methods.distillm2_beta(1.5), ["progress", "[0, 1]", "1.5"]),
    ],
)
def test_errors_of_the_curriculum(call, told):
    with pytest.raises(ValueError, match="must lie in") as caught:
        call()
    for text in told:
        assert text in str(caught.value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        am.methods.nothing  # noqa: B018
