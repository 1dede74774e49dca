"""The lowering of a program decides whether rows are the kernel's, and how many are a chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax_kinds
import numpy as np
import pytest
from jax_kinds import KINDS, LARGE, LOSS

import amidmath as am
from amidmath.backends import choice
from amidmath.backends.jax_backend import ffi as jax_cpu
from amidmath.backends.llvm_kernels import kernels as llvm_kernels
from amidmath.compiler.graph import UnsupportedError

pytestmark = pytest.mark.skipif(
    jax.device_count() != 1 or jax.default_backend() != "cpu",
    reason="needs one CPU device",
)

CALL = "custom_call @amidmath_rows("
MANY = jax.ShapeDtypeStruct((2**15, 64), jnp.float32)
"""Two chunks on a CPU, a part of one elsewhere."""

insisted = jax.jit(lambda x, y: am.AMiD()(x, y, backend="compiled"))
compiled = jax.jit(jax.grad(LOSS))


def test_a_program_for_this_process_calls_the_kernel():
    assert CALL in compiled.lower(MANY, MANY).as_text()


@pytest.mark.parametrize(
    ("kind", "platform"),
    [*((kind, "cuda") for kind in KINDS), ("dense", "tpu"), ("dense", "cpu")],
)
def test_what_is_exported_calls_nothing_of_this_process(kind, platform):
    x, rows, whole = jax_kinds.single(KINDS[kind].arrays(LARGE))
    g = jax.jit(jax.value_and_grad(lambda x: KINDS[kind].sum(x, rows, whole)))
    exported = jax.export.export(g, platforms=[platform])(x)
    assert CALL not in exported.mlir_module()


def test_for_several_platforms_at_once():
    exported = jax.export.export(compiled, platforms=["cpu", "cuda"])(MANY, MANY)
    assert CALL not in exported.mlir_module()
    x = jnp.asarray(jax_kinds.normal(0, *MANY.shape), jnp.float32)
    np.testing.assert_allclose(exported.call(x, x[::-1]), compiled(x, x[::-1]), atol=1e-8)


def test_chunks_are_those_of_the_platform():
    """Not of the machine that traces."""
    loops = {
        platform: "stablehlo.while"
        in jax.export.export(compiled, platforms=[platform])(MANY, MANY).mlir_module()
        for platform in ("cpu", "cuda")
    }
    assert loops == {"cpu": True, "cuda": False}


def test_a_shape_that_is_known_later():
    (rows,) = jax.export.symbolic_shape("rows")
    logits = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
    g = jax.jit(jax.grad(lambda x, y: LOSS(x, y, reduction="sum")))
    exported = jax.export.export(g)(logits, logits)
    for count in (5, LARGE):
        x = jnp.asarray(jax_kinds.normal(0, count, 8), jnp.float32)
        np.testing.assert_allclose(exported.call(x, x[::-1]), g(x, x[::-1]), atol=1e-6)


def test_compiled_is_refused_where_no_kernel_can_be_called():
    platforms = {
        "cpu": "kernels are of this process",
        "cuda": "the program is not for a CPU",
    }
    for platform, why in platforms.items():
        with pytest.raises(ValueError, match=f"backend 'compiled' runs in JAX on a CPU.*{why}"):
            jax.export.export(insisted, platforms=[platform])(MANY, MANY)


def test_what_llvm_cannot_compile_is_left_to_the_core(monkeypatch, calls):
    def impossible(*args):
        raise UnsupportedError("a row of this machine's")

    x = jnp.asarray(jax_kinds.normal(0, LARGE, 8), jnp.float32)
    wanted = compiled(x, x[::-1])
    assert calls
    calls.clear()
    monkeypatch.setattr(llvm_kernels, "kernel_of", impossible)
    got = jax.jit(jax.grad(LOSS))(x, x[::-1])
    np.testing.assert_allclose(got, wanted, atol=1e-8)
    assert not calls
    with pytest.raises(ValueError, match="cannot compute a row of this machine's"):
        jax.jit(insisted)(x, x)


def test_without_a_compiler(monkeypatch, calls):
    monkeypatch.setattr(choice, "_found", lambda package: False)
    x = jnp.asarray(jax_kinds.normal(0, LARGE, 8), jnp.float32)
    got = jax.jit(jax.grad(LOSS))(x, x[::-1])
    assert not calls
    monkeypatch.undo()
    np.testing.assert_allclose(got, compiled(x, x[::-1]), atol=1e-8)


def test_a_program_of_another_process(monkeypatch):
    """One that was compiled there calls what has not been traced here."""
    x = jnp.asarray(jax_kinds.normal(0, LARGE, 8), jnp.float32)
    program = compiled.lower(x, x).compile()
    monkeypatch.setattr(jax_cpu, "_CALLS", {})
    with pytest.raises(Exception, match="the program was compiled in another process"):
        jax.block_until_ready(program(x, x))


def test_a_batch_of_nothing():
    x = jnp.zeros((0, LARGE, 8))
    assert jax.vmap(jax.grad(LOSS))(x, x).shape == x.shape
