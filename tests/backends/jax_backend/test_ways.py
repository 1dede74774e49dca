"""JAX's transformations of every kind of loss, with few logits and with enough for a kernel."""

from __future__ import annotations

import jax
import jax_kinds
import pytest
from jax_kinds import KINDS, LARGE, SMALL
from jax_ways import SHARDED, WAYS

pytestmark = pytest.mark.skipif(
    jax.device_count() != 1 or jax.default_backend() != "cpu", reason="needs one CPU device"
)

FEW = ("jitted", "jvp", "vmap_of_grad", "checkpoint", "scan", "around", "forward", "export")
"""Ways that the array core goes by here; operation by operation it does in tests/amidmath."""

OTHERS = ("vmap_of_grad", "scan", "around", "forward", "grad_of_export")
"""Ways in which kinds differ."""

CASES = [
    *(("dense", way, LARGE) for way in WAYS | SHARDED),
    *(("dense", way, SMALL) for way in FEW),
    *((kind, way, LARGE) for kind in KINDS if kind != "dense" for way in OTHERS),
]


@pytest.mark.parametrize(("kind", "way", "rows"), CASES)
def test_sum_and_gradient(kind, way, rows):
    jax_kinds.check(kind, rows, *jax_kinds.outcome(kind, (WAYS | SHARDED)[way], rows))
