"""The table of tests/helpers/capabilities.py: what it says works does, and so do the docs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import array_api_strict
import dask
import dask.array
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from capabilities import CELLS, FACTORIES, NO, ROWS, YES, example, render

import amidmath as am

DOCS = Path(__file__).parents[3] / "docs" / "capabilities.md"
STEP = 1e-5
BY_NAME = {row.name: row for row in ROWS}


def has_cupy():
    if importlib.util.find_spec("cupy") is None:
        return False
    import cupy

    return cupy.cuda.is_available()


def cells(mark):
    for row in ROWS:
        for library, mode in CELLS:
            if row.mark((library, mode)) == mark:
                yield pytest.param(row, library, mode, id=f"{row.name}-{library}-{mode}")


def values(row):
    with np.errstate(all="ignore"):
        return row.call(*example())


def total(row):
    """The sum of the result with weights, so that no derivative of it is zero throughout."""

    weights = scales(values(row).shape)

    def f(p, q):
        xp = jnp if isinstance(p, jax.Array) else torch
        return (row.call(p, q) * xp.asarray(weights)).sum()

    return f


def scales(shape):
    return np.random.default_rng(5).normal(size=tuple(shape))


def directions():
    """Along the simplex, where alone some divergences are defined."""
    raw = np.random.default_rng(3).normal(size=(2, *example()[0].shape))
    logs = np.stack(example())
    return raw - (np.exp(logs) * raw).sum(axis=-1, keepdims=True)


def slope(row):
    """The derivative of the total along the directions, by differences in NumPy."""
    ends = []
    for step in (STEP, -STEP):
        result = row.call(*(a + step * d for a, d in zip(example(), directions(), strict=True)))
        ends.append((result * scales(result.shape)).sum())
    return (ends[0] - ends[1]) / (2 * STEP)


def agree(got, wanted, rtol=1e-10):
    assert got.shape == wanted.shape
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=rtol, atol=rtol)


def along(grads, wanted):
    np.testing.assert_allclose(
        sum((np.asarray(g) * d).sum() for g, d in zip(grads, directions(), strict=True)),
        wanted,
        rtol=1e-5,
        atol=1e-7,
    )


def refuse(*_):
    raise AssertionError("computed before it was asked to")


def check(row, library, mode):
    arrays = example()
    if library == "NumPy":
        assert np.isfinite(values(row)).all()
    elif library == "array-api-strict":
        flags = {"boolean_indexing": False, "data_dependent_shapes": False}
        with array_api_strict.ArrayAPIStrictFlags(**flags, enabled_extensions=()):
            got = row.call(*map(array_api_strict.asarray, arrays))
            assert type(got) is type(array_api_strict.asarray(0.0))
        agree(np.asarray(got), values(row))
    elif library == "dask":
        chunked = [dask.array.from_array(a, chunks=(1, 3, 4)) for a in arrays]
        with dask.config.set(scheduler=refuse):
            got = row.call(*chunked)
        assert isinstance(got, dask.array.Array)
        agree(got.compute(scheduler="synchronous"), values(row))
    elif library == "CuPy":
        if not has_cupy():
            pytest.skip("no CuPy with a GPU here")
        import cupy

        agree(cupy.asnumpy(row.call(*map(cupy.asarray, arrays))), values(row))
    elif library == "torch":
        check_torch(row, mode, [torch.from_numpy(a) for a in arrays])
    else:
        with jax.enable_x64(True):
            check_jax(row, mode, [jnp.asarray(a) for a in arrays])


def check_torch(row, mode, arrays):
    f = total(row)
    leaves = [a.clone().requires_grad_() for a in arrays]
    tangents = tuple(torch.from_numpy(d) for d in directions())
    if mode == "eager":
        agree(row.call(*arrays), values(row))
    elif mode == "compile":
        torch._dynamo.reset()
        weights = torch.from_numpy(scales(values(row).shape))
        compiled = torch.compile(row.call, fullgraph=True, backend="aot_eager")
        result = compiled(*leaves)
        agree(result.detach(), values(row))
        along(grads_of(lambda *_: (result * weights).sum(), leaves), slope(row))
    elif mode == "grad":
        along(grads_of(f, leaves), slope(row))
    elif mode == "func":
        pairs = [torch.stack([a, a.flip(0)]) for a in arrays]
        each = torch.func.vmap(row.call)(*pairs)
        agree(each[0], values(row))
        along(torch.func.grad(f, argnums=(0, 1))(*arrays), slope(row))
    else:
        _, tangent = torch.func.jvp(f, tuple(arrays), tangents)
        np.testing.assert_allclose(tangent, slope(row), rtol=1e-5)


def grads_of(f, leaves):
    grads = torch.autograd.grad(f(*leaves), leaves, allow_unused=True)
    return [torch.zeros_like(a) if g is None else g for g, a in zip(grads, leaves, strict=True)]


def check_jax(row, mode, arrays):
    f = total(row)
    if mode == "eager":
        agree(row.call(*arrays), values(row))
    elif mode == "jit":
        agree(jax.jit(row.call)(*arrays), values(row))
    elif mode == "grad":
        along(jax.jit(jax.grad(f, argnums=(0, 1)))(*arrays), slope(row))
    elif mode == "vmap":
        pairs = [jnp.stack([a, a[::-1]]) for a in arrays]
        agree(jax.jit(jax.vmap(row.call))(*pairs)[0], values(row))
    else:
        tangents = tuple(jnp.asarray(d) for d in directions())
        _, tangent = jax.jit(lambda p, t: jax.jvp(f, p, t))(tuple(arrays), tangents)
        np.testing.assert_allclose(tangent, slope(row), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("row", "library", "mode"), list(cells(YES)))
def test_what_works(row, library, mode):
    check(row, library, mode)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("row", "library", "mode"), list(cells(NO)))
def test_what_does_not_work(row, library, mode):
    with pytest.raises(Exception):  # noqa: B017, PT011  # each library has its own
        check(row, library, mode)


def test_the_table_has_every_public_name():
    named = {row.name.split(" ")[0].split(".")[0] for row in ROWS} | set(FACTORIES)
    assert named == set(am.__all__) | set(am.geometry.__all__)
    for row in ROWS:
        assert row.like is None or BY_NAME[row.like].like is None, row.name


def test_the_docs_are_the_table():
    command = "python tests/helpers/capabilities.py > docs/capabilities.md"
    assert DOCS.read_text(encoding="utf-8") == render(), f"run {command}"
