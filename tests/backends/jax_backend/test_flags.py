"""JAX's flags, of which some look for faults in the caller's code: each kind of loss runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import jax_kinds
import numpy as np
import pytest
from jax_kinds import KINDS, LARGE, SMALL

from amidmath.integrations.plugins.jax_losses import am_loss

STRICT = {
    "double precision": {"jax_enable_x64": True},
    "ranks": {"jax_numpy_rank_promotion": "raise"},
    "dtypes": {"jax_numpy_dtype_promotion": "strict"},
    "NaNs": {"jax_debug_nans": True},
    "infinities": {"jax_debug_infs": True},
    "leaks": {"jax_check_tracer_leaks": True},
    "checks": {"jax_enable_checks": True},
}
OTHERS = {
    "older ways": {"jax_use_direct_linearize": False, "jax_use_shardy_partitioner": False},
    "newer ways": {
        "jax_custom_vjp3": True,
        "jax_remat3": True,
        "jax_scan3": True,
        "jax_auto_pcast": False,
    },
    "the rest": {
        "jax_transfer_guard": "disallow",
        "jax_log_compiles": True,
        "jax_explain_cache_misses": True,
        "jax_default_matmul_precision": "highest",
        "jax_default_device": jax.devices()[0],
        "jax_default_prng_impl": "rbg",
        "jax_enable_custom_prng": True,
        "jax_legacy_prng_key": "error",
        "jax_threefry_partitionable": False,
        "jax_debug_key_reuse": True,
        "jax_softmax_custom_jvp": True,
        "jax_check_static_indices": True,
        "jax_explicit_x64_dtypes": "error",
        "jax_thread_guard": True,
        "jax_use_simplified_jaxpr_constants": True,
        "jax_remove_size_one_mesh_axis_from_type": True,
    },
}

RUN = [("knobs", SMALL), ("linear", SMALL), ("dense", LARGE), ("sparse", LARGE)]


@contextmanager
def flags(values: dict[str, Any]) -> Iterator[None]:
    before = {name: jax.config.values[name] for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def sums(arrays):
    return {case: KINDS[case[0]].sum(x, rows, whole) for case, (x, rows, whole) in arrays.items()}


def derivatives(arrays):
    """By ``x`` of every case."""
    xs = {case: x for case, (x, _, _) in arrays.items()}

    def total(xs):
        given = {case: (xs[case], *rest) for case, (_, *rest) in arrays.items()}
        found = sums(given)
        return sum(found.values()), found

    return jax.grad(total, has_aux=True)(xs)


@pytest.mark.parametrize("name", STRICT | OTHERS)
def test_in_jit(name):
    arrays = {case: jax_kinds.single(jax_kinds.arrays(*case)) for case in RUN}
    with flags((STRICT | OTHERS)[name]):  # a function of its own, which is traced anew
        grads, values = jax.block_until_ready(jax.jit(lambda a: derivatives(a))(arrays))
    for case in RUN:
        jax_kinds.check(*case, *map(np.asarray, (values[case], grads[case])))


@pytest.mark.parametrize("name", ["ranks", "dtypes", "NaNs", "infinities", "checks"])
def test_operation_by_operation(name):
    cases = [(kind, SMALL) for kind in ("knobs", "linear", "divergence", "mean")]
    arrays = {case: jax_kinds.single(jax_kinds.arrays(*case, finite=True)) for case in cases}
    counted = jnp.arange(8) < 5
    jax.clear_caches()  # programs that have run are not looked at any more
    with flags(STRICT[name]):
        grads, values = jax.block_until_ready(derivatives(arrays))
        x, rows, _ = arrays["divergence", SMALL]
        where = jnp.broadcast_to(counted, x.shape)
        left_out = jax.grad(lambda x: am_loss(x, rows["teacher"], where=where).sum())(x)
    for case in cases:
        jax_kinds.check(*case, *map(np.asarray, (values[case], grads[case])), finite=True)
    assert not left_out[:, 5:].any()
