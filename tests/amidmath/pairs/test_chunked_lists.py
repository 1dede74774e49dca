"""The loss from hidden states against top-k lists: as of the whole logits, and by definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.distributed as dist
from jax.sharding import PartitionSpec
from linear_oracle import case, close, expected, flat, on, same
from sparse_oracle import exact, truth
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import amidmath as am

K = 4
KL = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
WARM = am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.5, lam=0.25, temperature=2.0)
SUM = 0.3 * WARM + -2.0 * am.AMiD(order="pr", temperature=2.0)
MASK = np.array([1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0], bool)
LABELS = np.array([1, 7, -100, 0, 10, -100, 3, 3, 2, 9, -100, 1, 5])
CAPPED = {"scale": 0.7, "softcap": 2.0}
WHOLE = {"bias": True, "low_rank": True, "student": CAPPED}

CASES = {
    "plain": (KL, case(k=K), {}),
    "one token": (KL, case(k=1), {}),
    "all tokens": (KL, case(k=11), {}),
    "positions of two axes": (KL, case((3, 4), k=K), {}),
    "temperature": (WARM, case(k=K, temperature=2.0), {}),
    "a sum of losses": (SUM, case(k=K, temperature=2.0), {"mask": MASK}),
    "all of a head": (
        KL,
        case(k=K, **WHOLE),
        {"mask": MASK, "labels": LABELS, "label_weight": 0.3},
    ),
    "warm, capped": (WARM, case(k=K, temperature=2.0, **WHOLE), {"mask": MASK, "labels": LABELS}),
    "scale": (KL, case(k=K, student={"scale": 1 / 8}), {}),
    "mask of integers": (KL, case(k=K), {"mask": MASK.astype(int)}),
    "sum": (KL, case(k=K), {"mask": MASK, "reduction": "sum"}),
    "none": (KL, case(k=K, bias=True), {"mask": MASK, "reduction": "none", "labels": LABELS}),
    "denominator": (KL, case(k=K), {"mask": MASK, "denominator": 5.0, "labels": LABELS}),
    "ignore_index": (KL, case(k=K), {"labels": LABELS, "ignore_index": 3, "mask": LABELS >= 0}),
}
by_case = pytest.mark.parametrize(("loss", "given", "options"), CASES.values(), ids=CASES)


def lists_on(library, given):
    """The case's arguments in a library of the fixtures, tokens as integers."""
    hidden, head, _ = given.arguments(am, library.array)
    logs, indices = given.lists
    return hidden, head, am.TopK(library.array(logs), library.array(indices, "int32"))


# ---------------------------------------------------------------------------------------------
# Values and gradients


@by_case
def test_value_and_gradients_are_those_of_the_whole_logits(eager, loss, given, options):
    value, grads = expected(loss, given, **options)
    arguments, options = given.arguments(am, eager), on(eager, options)
    got, by = loss.linear_value_and_grad(*arguments, wrt=given.names, chunk_rows=5, **options)
    same(got, value)
    same(loss.linear(*arguments, chunk_rows=5, **options), value)
    for mine, theirs in zip(flat(by), flat(grads[n] for n in given.names), strict=True):
        same(mine, theirs)


@pytest.mark.parametrize(
    ("divergence", "order", "alpha", "temperature"),
    [(am.KL(), "qr", -1.0, 1.0), (am.KL(), "pr", 3.0, 2.0), (am.Renyi(2.0), "rq", 0.5, 0.5)],
)
def test_definition(any_library, divergence, order, alpha, temperature):
    """k + 1 outcomes at 200 digits, of the exact logits of hidden states and a head."""
    given = case((3,), (6, 6), (2, 3), k=3, temperature=temperature)
    for array in (given.student_hidden, given.student_head):  # products that float32 has
        array[:] = np.round(8.0 * array) / 8.0
    logits = given.student_hidden @ given.student_head.T
    given.lists = (given.lists[0].astype("float32").astype("float64"), given.lists[1])
    rows = [
        truth(divergence, order, exact(row), tuple(logs), tuple(i), alpha, 0.25, temperature)
        for row, logs, i in zip(logits, *given.lists, strict=True)
    ]
    wanted = np.array([float(whole.value) for whole, _ in rows])
    outer = np.array([[float(v) for v in slopes] for _, slopes in rows])
    loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.25, temperature=temperature)
    value, (by_hidden, by_head) = loss.linear_value_and_grad(
        *lists_on(any_library, given),
        reduction="none",
        wrt=("student_hidden", "student_head"),
        chunk_rows=2,
    )
    close(any_library, value, wanted)
    close(any_library, by_hidden, outer @ given.student_head)
    close(any_library, by_head, outer.T @ given.student_hidden)


def test_tokens_that_the_list_leaves_out_without_mass_are_the_bucket_of_a_smaller_teacher(eager):
    """Two definitions meet: a teacher of the first 7 of 11 tokens, by its head and by its list."""
    small = case(vocabulary=(11, 7))
    value, grads = expected(KL, small, vocab="common", labels=LABELS)
    listed = case(vocabulary=(11, 7), k=7)
    logits = small.teacher_hidden @ small.teacher_head.T
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    listed.lists = (logs + 1e-13, np.tile(np.arange(7), (13, 1)))  # no tail, not even by rounding
    got, by = KL.linear_value_and_grad(
        *listed.arguments(am, eager), wrt=listed.names, labels=eager(LABELS), chunk_rows=5
    )
    for mine, theirs in zip((got, *by), (value, *(grads[n] for n in small.names)), strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs, rtol=1e-11, atol=1e-12)


def test_what_is_left_out_is_not_read(any_library):
    given = case(k=K, bias=True)
    value, grads = expected(KL, given, mask=MASK)
    given.student_hidden[~MASK], given.lists[0][~MASK], given.lists[1][~MASK] = np.nan, 7.0, 99
    got, by = KL.linear_value_and_grad(
        *lists_on(any_library, given),
        mask=any_library.array(MASK, "bool"),
        wrt=given.names,
        labels=any_library.array(np.where(MASK, -100, 999), "int64"),
        chunk_rows=4,
    )
    close(any_library, got, value)
    for name, mine in zip(given.names, by, strict=True):
        close(any_library, mine, grads[name], 4)
    assert (any_library.numpy(by[0])[~MASK] == 0.0).all()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_kept_and_nothing_there(any_library, reduction):
    arguments = lists_on(any_library, case(k=K))
    mask = any_library.array(MASK & False, "bool")
    wrt = ("student_hidden", "student_head")
    value, grads = KL.linear_value_and_grad(*arguments, mask=mask, reduction=reduction, wrt=wrt)
    assert not any_library.numpy(value).any()
    assert not any(any_library.numpy(g).any() for g in grads)
    value, grad = KL.linear_value_and_grad(
        *lists_on(any_library, case((0,), k=K)), wrt="student_head"
    )
    assert any_library.numpy(value) == 0.0
    assert not any_library.numpy(grad).any()


def test_parameters_of_every_position(any_library):
    rng = np.random.default_rng(3)
    lam, alpha = rng.uniform(0.1, 0.9, 13), rng.normal(size=())
    given = case(k=K)
    wrt = ("alpha", "lam")
    wanted, by = am.AMiD(order="rq", alpha=np.array(alpha), lam=lam).sparse_value_and_grad(
        given.student_hidden @ given.student_head.T, am.TopK(*given.lists), MASK, wrt=wrt
    )
    array = any_library.array
    loss = am.AMiD(order="rq", alpha=array(alpha), lam=array(lam))
    value, grads = loss.linear_value_and_grad(
        *lists_on(any_library, given), mask=array(MASK, "bool"), wrt=wrt, chunk_rows=4
    )
    for mine, theirs in zip((value, *grads), (wanted, *by), strict=True):
        assert mine.shape == theirs.shape
        close(any_library, mine, theirs, 16)


def test_lists_in_float64_make_all_of_it_float64():
    given = case(k=K)
    hidden, head, top = given.arguments(am, torch.tensor)
    exactly = KL.linear(hidden.float().double(), am.Head(head.weight.float().double()), top)
    value = KL.linear(hidden.float(), am.Head(head.weight.float()), top)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, exactly, rtol=1e-5, atol=0.0)


# ---------------------------------------------------------------------------------------------
# torch


def leaves(given, dtype=torch.float64):
    """Hidden states, weight, bias, A and B."""
    arrays = (given.student_hidden, given.student_head, given.student_bias, *given.student_low_rank)
    return [torch.tensor(a, dtype=dtype).requires_grad_() for a in arrays]


def of(given, loss, hidden, weight, bias, a, b, **options):
    head = am.Head(weight, bias, low_rank=(a, b, given.factor), **given.student)
    top = am.TopK(*map(torch.from_numpy, given.lists))
    return loss.linear(hidden, head, top, chunk_rows=4, **options)


def torch_logits(given, hidden, weight, bias, a, b):
    outputs = hidden @ weight.T + bias + given.factor * (hidden @ a.T) @ b.T
    return 2.0 * torch.tanh(0.7 * outputs / 2.0)


@pytest.mark.parametrize(
    "options",
    [{}, {"reduction": "sum"}, {"denominator": torch.tensor(7)}, {"reduction": "none"}],
    ids=str,
)
def test_autograd(options):
    """Every value with a cotangent of its own, a sum with one that is not 1."""
    given = case(k=K, temperature=2.0, **WHOLE)
    mask, top = torch.from_numpy(MASK), am.TopK(*map(torch.from_numpy, given.lists))
    ours, theirs = leaves(given), leaves(given)
    values = (
        of(given, SUM, *ours, mask=mask, **options),
        SUM.sparse(torch_logits(given, *theirs), top, mask, **options),
    )
    torch.testing.assert_close(*values)
    for value in values:
        weights = torch.linspace(-1.0, 2.0, 13, dtype=torch.float64) if value.ndim else 3.0
        (weights * value).sum().backward()
    for mine, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, wanted.grad)


def test_gradcheck():
    given, mask = case((5,), k=K, temperature=2.0, **WHOLE), torch.arange(5) != 2
    assert torch.autograd.gradcheck(lambda *a: of(given, SUM, *a, mask=mask), leaves(given))


def test_functional_gradient():
    given = case(k=K, **WHOLE)
    _, grads = expected(KL, given)
    wanted = flat(grads[n] for n in given.names)
    tensors = (t.detach() for t in leaves(given))
    found = torch.func.grad(lambda *a: of(given, KL, *a), argnums=(0, 1, 2, 3, 4))(*tensors)
    for got, grad in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, grad, rtol=1e-12, atol=1e-14)


def test_array_parameters_get_their_gradients():
    given = case(k=K)
    hidden, head, top = given.arguments(am, torch.tensor)
    lam = torch.full((13,), 0.3, dtype=torch.float64, requires_grad=True)
    loss = am.AMiD(am.KL(), order="qr", alpha=torch.tensor(-1.0, dtype=torch.float64), lam=lam)
    found, wanted = (
        torch.autograd.grad(value, [lam])[0]
        for value in (
            loss.linear(hidden, head, top, chunk_rows=4),
            loss.sparse(hidden @ head.weight.T, top),
        )
    )
    torch.testing.assert_close(found, wanted)


def random_model(dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    top = am.top_k(3.0 * torch.randn(64, 500, generator=generator), 16)
    return normal(64, 32), normal(500, 32) / 6, top


def in_double(hidden, head, top):
    hidden, head = (a.detach().double().requires_grad_() for a in (hidden, head))
    value = KL.sparse(hidden @ head.T, top)
    value.backward()
    return float(value.detach()), hidden.grad, head.grad


def off(got, wanted):
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_multiplies_in_it_and_computes_in_float32(dtype, autocast):
    hidden, head, top = random_model(torch.float32 if autocast else dtype)
    value, by_hidden, by_head = in_double(hidden, head, top)
    hidden.requires_grad_()
    head.requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        got = KL.linear(hidden, head, top, chunk_rows=16)
        logits = torch.nn.functional.linear(hidden, head)
    (0.75 * got).backward()
    assert logits.dtype == dtype
    torch.testing.assert_close(got, KL.sparse(logits.float(), top), rtol=1e-6, atol=0.0)
    eps = torch.finfo(dtype).eps
    assert abs(float(got.detach()) / value - 1) < eps / 4
    for leaf, wanted in ((hidden, by_hidden), (head, by_head)):
        assert leaf.grad.dtype == leaf.dtype
        assert off(leaf.grad, 0.75 * wanted) < 2 * eps


def test_float16_does_not_underflow_before_it_is_scaled_up():
    hidden, head, top = random_model(torch.float16)
    _, by_hidden, by_head = in_double(hidden, head, top)
    hidden.requires_grad_()
    head.requires_grad_()
    loss_scale = 2.0**16
    value = KL.linear(hidden, head, top, denominator=64 * loss_scale)
    (loss_scale * value).backward()
    assert off(hidden.grad, by_hidden) < 2**-9
    assert off(head.grad, by_head) < 2**-9


class _Largest(TorchDispatchMode):
    """Notes the most numbers that any result has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_logits_are_never_whole():
    vocabulary, rows, chunk = 1000, 96, 8
    hidden = torch.randn(rows, 2, requires_grad=True)
    head = am.Head(torch.randn(vocabulary, 2, requires_grad=True))
    top = am.top_k(torch.randn(rows, vocabulary), 3)
    with _Largest() as seen:
        am.AMiD().linear(hidden, head, top, chunk_rows=chunk).backward()
    assert seen.numel <= chunk * vocabulary


def test_the_teacher_is_constant_in_torch():
    hidden, head, top = case(k=K).arguments(am, torch.tensor)
    top = top._replace(log_probs=torch.nan_to_num(top.log_probs).requires_grad_())
    with pytest.raises(ValueError, match=r"teacher_hidden\.log_probs must not require a gradient"):
        KL.linear(hidden, head, top)
    with torch.no_grad():
        KL.linear(hidden, head, top)


def test_a_sharded_head(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        mesh = dist.init_device_mesh("cpu", (1,))
        given = case(k=K)
        _, grads = expected(KL, given)
        hidden, head, top = given.arguments(am, torch.tensor)
        weight = distribute_tensor(head.weight, mesh, [Shard(0)]).requires_grad_()
        KL.linear(hidden, weight, top, chunk_rows=4).backward()
        assert weight.grad.placements == (Shard(0),)
        np.testing.assert_allclose(weight.grad.full_tensor(), grads["student_head"], rtol=1e-12)
        spread = am.TopK(*(distribute_tensor(a, mesh, [Shard(0)]) for a in top))
        with pytest.raises(TypeError, match=r"teacher_hidden.log_probs must be a plain tensor"):
            KL.linear(hidden, weight, spread)
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------
# JAX


class TestJax:
    given = case(k=K, temperature=2.0, **WHOLE)
    every = tuple(range(5))

    @pytest.fixture(autouse=True)
    def in_double(self):
        with jax.enable_x64(True):
            yield

    def leaves(self):
        """Hidden states, weight, bias, A and B; positions that are left out are NaN."""
        hidden = np.where(MASK[:, None], self.given.student_hidden, np.nan)
        arrays = (hidden, self.given.student_head, self.given.student_bias)
        return [jnp.asarray(a) for a in (*arrays, *self.given.student_low_rank)]

    def of(self, hidden, weight, bias, a, b, top=None, mask=MASK, reduction="mean"):
        head = am.Head(weight, bias, low_rank=(a, b, self.given.factor), **CAPPED)
        if top is None:
            logs, indices = self.given.lists
            top = am.TopK(
                jnp.where(MASK[:, None], logs, jnp.nan), jnp.where(MASK[:, None], indices, 99)
            )
        return SUM.linear(
            hidden, head, top, mask=jnp.asarray(mask), reduction=reduction,
            labels=jnp.asarray(LABELS), label_weight=0.3, chunk_rows=4,
        )  # fmt: skip

    def wanted(self, mask=MASK, reduction="mean"):
        value, grads = expected(
            SUM, self.given, mask=mask, reduction=reduction, labels=LABELS, label_weight=0.3
        )
        return [value, *flat(grads[n] for n in self.given.names)]

    def close(self, got, wanted):
        for mine, theirs in zip(got, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("jitted", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_gradients(self, jitted):
        f = jitted(jax.value_and_grad(lambda *a: 2.0 * self.of(*a), argnums=self.every))
        value, by = f(*self.leaves())
        self.close([value, *by], [2.0 * a for a in self.wanted()])

    def test_every_value_has_a_cotangent_of_its_own(self):
        weights = jnp.linspace(-1.0, 2.0, 13)
        by = jax.grad(
            lambda *a: (self.of(*a, reduction="none") * weights).sum(), argnums=self.every
        )(*self.leaves())
        singly = [
            [float(weights[i]) * g for g in self.wanted(np.arange(13) == i, "sum")[1:]]
            for i in np.flatnonzero(MASK)
        ]
        self.close(by, [sum(column) for column in zip(*singly, strict=True)])

    def test_forward_mode(self):
        primals = self.leaves()
        value, change = jax.jvp(self.of, primals, [jnp.ones_like(a) for a in primals])
        wanted, *grads = self.wanted()
        self.close([value, change], [wanted, sum(g.sum() for g in grads)])

    def test_vmap(self):
        hidden, *rest = self.leaves()
        top = am.TopK(*map(jnp.asarray, self.given.lists))
        twice = jax.tree.map(lambda a: jnp.stack([a, a]), (hidden, top, jnp.asarray(MASK)))
        f = jax.value_and_grad(self.of, argnums=(0, 1))
        batched = jax.vmap(f, in_axes=(0, *4 * (None,), 0, 0))
        values, by = batched(twice[0], *rest, *twice[1:])
        for i in (0, 1):
            self.close([values[i], *(g[i] for g in by)], self.wanted()[:3])

    def test_shard_map_over_positions(self):
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        rows, same = PartitionSpec("data"), PartitionSpec()
        hidden, head, top = case(k=K).arguments(am, jnp.asarray)

        def total(hidden, weight, top):
            value = KL.linear(hidden, weight, top, reduction="sum", chunk_rows=4)
            return jax.lax.psum(value, "data")

        sharded = jax.shard_map(total, mesh=mesh, in_specs=(rows, same, rows), out_specs=same)
        value, by = jax.value_and_grad(sharded, argnums=(0, 1))(hidden, head.weight, top)
        wanted, grads = expected(KL, case(k=K), reduction="sum")
        self.close([value, *by], [wanted, grads["student_hidden"], grads["student_head"]])

    def test_the_teacher_is_constant(self):
        hidden, head, top = case(k=K).arguments(am, jnp.asarray)
        logs = jnp.nan_to_num(top.log_probs)

        def loss(logs, reduction="mean"):
            return jnp.sum(
                KL.linear(hidden, head, am.TopK(logs, top.indices), None, None, reduction)
            )

        for reduction in ("mean", "none"):
            with pytest.raises(ValueError, match=r"teacher_hidden\.log_probs are constant"):
                jax.grad(loss)(logs, reduction)
        held = jax.grad(lambda logs: loss(jax.lax.stop_gradient(logs)))(logs)
        assert not held.any()

    def test_what_cannot_be_is_nan_where_it_is_not_at_hand(self):
        hidden, head, top = case(k=K).arguments(am, jnp.asarray)
        wrong = top._replace(indices=top.indices.at[3, 0].set(11))
        with pytest.raises(
            ValueError, match=r"teacher_hidden\.indices must be tokens in \[0, 11\)"
        ):
            KL.linear(hidden, head, wrong)
        f = jax.jit(lambda top: KL.linear(hidden, head, top, reduction="none", chunk_rows=4))
        assert (np.isnan(f(wrong)) == (np.arange(13) == 3)).all()

    def test_bfloat16(self):
        rng = np.random.default_rng(0)
        hidden = jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16)
        head = jnp.asarray(rng.normal(size=(500, 32)) / 6, jnp.bfloat16)
        top = am.top_k(jnp.asarray(3 * rng.normal(size=(64, 500)), jnp.float32), 16)
        value, by = jax.value_and_grad(
            lambda *a: KL.linear(*a, top, chunk_rows=16), argnums=(0, 1)
        )(hidden, head)
        h, w = (np.asarray(a, np.float64) for a in (hidden, head))
        lists = am.TopK(*map(np.asarray, top))
        exact, outer = KL.sparse_value_and_grad(h @ w.T, lists)
        assert value.dtype == jnp.float32
        assert abs(value / exact - 1) < 2**-9
        for mine, theirs in zip(by, (outer @ w, outer.T @ h), strict=True):
            assert mine.dtype == jnp.bfloat16
            assert np.abs(mine - theirs).max() < 2**-7 * np.abs(theirs).max()


# ---------------------------------------------------------------------------------------------
# Errors


TOP = am.TopK(np.log(np.full((2, 2), 0.25)), np.array([[0, 1], [2, 3]]))
WRONG = {
    "a head": ({"teacher_head": np.zeros((4, 5))}, TypeError, r"teacher_head must be left out"),
    "no head": (
        {"teacher_hidden": np.zeros((2, 5))},
        TypeError,
        r"teacher_head must be .* got None and hidden states of shape \(2, 5\); only an am.TopK",
    ),
    "a pair": ({"teacher_hidden": tuple(TOP)}, TypeError, "teacher_hidden must be an array"),
    "vocab": ({"vocab": "common"}, ValueError, "vocab must be 'strict' .* got 'common': put -1"),
    "no vocab": ({"vocab": "first"}, ValueError, "vocab must be one of 'strict', 'common'"),
    "token": (
        {"teacher_hidden": TOP._replace(indices=TOP.indices + 1)},
        ValueError,
        r"teacher_hidden.indices must be tokens in \[0, 4\), or -1 .* 4.0",
    ),
    "twice": (
        {"teacher_hidden": TOP._replace(indices=0 * TOP.indices)},
        ValueError,
        "teacher_hidden.indices of every position must be different tokens",
    ),
    "NaN": (
        {"teacher_hidden": TOP._replace(log_probs=np.nan * TOP.log_probs)},
        ValueError,
        "teacher_hidden.log_probs must be numbers or -inf, but 4 of them are not",
    ),
    "mass": (
        {"teacher_hidden": TOP._replace(log_probs=TOP.log_probs + 1)},
        ValueError,
        r"the sums of exp\(teacher_hidden.log_probs\) must be at most 1",
    ),
    "positions": (
        {"teacher_hidden": am.TopK(*(a[:1] for a in TOP))},
        ValueError,
        r"teacher_hidden.indices must have the positions of student_hidden .* \(1, 2\) and \(2, 3",
    ),
    "dtype": (
        {"teacher_hidden": am.TopK(TOP.log_probs, TOP.log_probs)},
        TypeError,
        "teacher_hidden.indices must be integers, got dtype float64",
    ),
    "two libraries": (
        {"teacher_hidden": am.TopK(*map(torch.from_numpy, TOP))},
        TypeError,
        "student_hidden and teacher_hidden.log_probs must come from one array library",
    ),
    "mask": ({"mask": np.ones(3, bool)}, ValueError, r"mask must broadcast to shape \(2,\)"),
    "hidden size": ({"student_head": np.zeros((4, 2))}, ValueError, "student_hidden must have a"),
    "label": ({"labels": np.array([0, 4])}, ValueError, r"labels must be tokens in \[0, 4\)"),
    "chunk_rows": ({"chunk_rows": 0}, ValueError, "chunk_rows must be positive, got 0"),
}


@pytest.mark.parametrize(("change", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(change, kind, message):
    given = {
        "student_hidden": np.zeros((2, 3)),
        "student_head": np.zeros((4, 3)),
        "teacher_hidden": TOP,
    }
    for call in (KL.linear, KL.linear_value_and_grad):
        with pytest.raises(kind, match=message):
            call(**(given | change))


def test_wrong_losses():
    hidden, head = np.zeros((2, 3)), np.zeros((4, 3))
    with pytest.raises(ValueError, match=r"one temperature.* got 1.0, 2.0; call each part"):
        (am.AMiD(temperature=2.0) + am.AMiD()).linear(hidden, head, TOP)
    with pytest.raises(TypeError, match="linear needs a loss of whole rows"):
        am.VocabParallel(KL, "vocab").linear(hidden, head, TOP)
    with pytest.raises(
        ValueError, match="wrt must be one of 'student_hidden', 'student_head', got"
    ):
        KL.linear_value_and_grad(hidden, head, TOP, wrt="teacher_hidden")
