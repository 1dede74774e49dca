"""Every kind of array in every place where an array goes: the right numbers, or our error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import amidmath as am

TABLE = Path(__file__).parents[2] / "helpers" / "array_kinds.py"


def test_every_kind_of_array_in_every_place():
    """One process of its own, which may die of a wrong address; its last line says where."""
    done = subprocess.run(
        [sys.executable, str(TABLE), "numpy", "torch", "jax"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    last = done.stderr.strip().rpartition("\n")[2]
    assert done.returncode == 0, f"{done.stdout}\nthe last line: {last}"


@pytest.mark.parametrize("vocabulary", [5, 12_000])
def test_bfloat16_of_numpy_is_that_of_torch(vocabulary):
    """Computed in float32, gradients back in bfloat16; on either side of 65,536 logits."""
    rng = np.random.default_rng(0)
    student, teacher = (torch.tensor(a).bfloat16() for a in rng.normal(size=(2, 6, vocabulary)))
    ours = [a.float().numpy().astype(ml_dtypes.bfloat16) for a in (student, teacher)]
    value, grad = am.AMiD(alpha=0.5).value_and_grad(*ours, reduction="sum")
    wanted, wanted_grad = am.AMiD(alpha=0.5).value_and_grad(student, teacher, reduction="sum")
    assert (value.dtype, grad.dtype) == (np.float32, ml_dtypes.bfloat16)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    wanted_grad = wanted_grad.float().numpy()
    np.testing.assert_allclose(grad.astype("f4"), wanted_grad, rtol=2**-7, atol=1e-7)

    logs = [torch.log_softmax(a.float(), -1).bfloat16() for a in (student, teacher)]
    ours = [a.float().numpy().astype(ml_dtypes.bfloat16) for a in logs]
    np.testing.assert_allclose(am.KL()(*ours), am.KL()(*logs), rtol=1e-5)
    top = am.top_k(ours[1], 3)
    assert top.log_probs.dtype == np.float32
    rounded = am.TopK(top.log_probs.astype(ml_dtypes.bfloat16), top.indices)
    assert np.isfinite(am.AMiD()(ours[0], rounded))


def test_tensors_without_numbers_among_themselves():
    """Shapes and dtypes come out; nothing looks at a value."""
    with FakeTensorMode():
        fake = torch.empty((2, 3, 4), requires_grad=True)
        value = am.AMiD(alpha=torch.empty(3))(fake, torch.empty((2, 3, 4)), torch.ones(2, 1).bool())
        value.backward()
        assert (value.shape, fake.grad.shape) == ((), (2, 3, 4))
    meta = torch.empty((2, 3, 4), device="meta", dtype=torch.bfloat16)
    value, grad = am.AMiD().value_and_grad(meta, meta)
    assert (value.dtype, grad.dtype, grad.shape) == (torch.float32, torch.bfloat16, (2, 3, 4))


def test_inference_mode():
    student = torch.zeros((2, 4), requires_grad=True)
    with torch.inference_mode():
        value = am.AMiD()(student, torch.eye(2, 4))
        assert value.is_inference()
    torch.testing.assert_close(value, am.AMiD()(student, torch.eye(2, 4)).detach())


def test_a_tracer_after_its_trace_is_refused_by_jax():
    kept = []
    jax.jit(lambda x: kept.append(x))(jnp.zeros((2, 4)))
    with pytest.raises(jax.errors.UnexpectedTracerError):
        am.AMiD()(kept[0], jnp.zeros((2, 4)))
