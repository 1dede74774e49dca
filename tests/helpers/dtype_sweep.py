"""Prints what is wrong with values and gradients over pairs of dtypes, of a library each time.

    python dtype_sweep.py

A process of its own, as what is wrong may be a crash. Every pair of dtypes of any two operands
(student, teacher, weight, α, λ) occurs: an orthogonal array of 16 (9 without bfloat16) of the 4⁵.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from llvmlite import binding as llvm

import amidmath as am
from amidmath.backends.llvm_kernels import jit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ALL = ("float32", "float64", "float16", "bfloat16")
NUMPY = {name: np.dtype(name) for name in ALL[:3]} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
WRT = ("student", "teacher", "parts[0].weight", "parts[0].alpha", "parts[0].lam")
ROWS = 64
FEW, MANY = 20, 1024  # tokens: 65,536 logits are compiled unasked


def arrangements(levels: int) -> list[tuple[str, ...]]:
    """Rows in which any two columns take all pairs: a, b, a + b, a + 2b, a + 3b in a field."""
    times = {0: (0, 0, 0, 0), 1: (0, 1, 2, 3), 2: (0, 2, 3, 1), 3: (0, 3, 1, 2)}
    rows = []
    for a, b in itertools.product(range(levels), repeat=2):
        if levels == 4:
            places = (a, b, *(a ^ times[factor][b] for factor in (1, 2, 3)))
        else:  # of three elements there are four columns only; weight and α share one
            places = (a, b, (a + b) % 3, (a + b) % 3, (a + 2 * b) % 3)
        rows.append(tuple(ALL[place] for place in places))
    return rows


def numbers(tokens: int) -> list[np.ndarray[Any, Any]]:
    """Student, teacher, weight, α and λ, which every dtype has."""
    rng = np.random.default_rng(0)
    teacher = np.round(8 * rng.normal(0, 2, (ROWS, tokens))) / 8
    student = teacher + np.round(8 * rng.normal(size=teacher.shape)) / 8
    places = np.arange(ROWS)
    weight = np.array([0.5, 1.0, 2.0])[places % 3]
    alpha = np.array([-1.5, -1.0, 0.25, 1.0, 3.0])[places % 5]
    lam = np.array([0.125, 0.5, 0.75])[places % 3]
    narrow = (a.astype(ml_dtypes.bfloat16).astype(np.float16) for a in (student, teacher))
    return [*(a.astype(np.float64) for a in narrow), weight, alpha, lam]


def loss(weight: Any, alpha: Any, lam: Any) -> am.Loss:
    return weight * am.AMiD(alpha=alpha, lam=lam)


def asked(*operands: Any, **given: Any) -> list[Any]:
    """The value and the gradients."""
    student, teacher, *knobs = operands
    given |= {"wrt": WRT, "reduction": "sum"}  # a mean is another program
    value, grads = loss(*knobs).value_and_grad(student, teacher, **given)
    return [value, *grads]


def by_autograd(*operands: torch.Tensor) -> list[torch.Tensor]:
    for operand in operands:
        operand.requires_grad_()
    student, teacher, *knobs = operands
    value = loss(*knobs)(student, teacher, reduction="sum")
    value.backward()
    return [value.detach(), *(operand.grad for operand in operands)]  # type: ignore[list-item]


def by_jax(*operands: jax.Array) -> list[jax.Array]:
    def value(student: Any, teacher: Any, *knobs: Any) -> Any:
        return loss(*knobs)(student, teacher, reduction="sum")

    found, grads = jax.value_and_grad(value, argnums=tuple(range(5)))(*operands)
    return [found, *grads]


def tensor(a: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    return torch.from_numpy(a.copy()).to(getattr(torch, dtype))


def jax_array(a: np.ndarray[Any, Any], dtype: str) -> jax.Array:
    return jnp.asarray(a, dtype=NUMPY[dtype])


def widened(a: Any) -> np.ndarray[Any, Any]:
    if isinstance(a, torch.Tensor):
        return a.to(torch.float64).numpy()
    return np.asarray(a).astype(np.float64)


def wrong(found: list[Any], truth: list[Any], dtypes: tuple[str, ...]) -> Iterator[str]:
    """What is not of the right dtype, or not right to what it is computed and stored in."""
    computing = "float64" if "float64" in dtypes[:2] else "float32"
    eps = float(np.finfo(computing).eps)
    for name, dtype, got, wanted in zip(
        ("value", *WRT), (computing, *dtypes), found, truth, strict=True
    ):
        if str(got.dtype).removeprefix("torch.") != dtype:
            yield f"{name} is of {got.dtype}, not {dtype}"
        info = ml_dtypes.finfo(NUMPY[dtype])
        size = np.abs(wanted).max(axis=-1, keepdims=wanted.ndim > 0)
        bound = 512 * eps * size + float(info.eps) * np.abs(wanted)
        off = np.abs(widened(got) - wanted)
        if not (off <= bound + float(info.smallest_subnormal)).all():
            yield f"{name} is off by {np.max(off / size)} of its largest"


def swept(
    title: str,
    rows: Sequence[tuple[str, ...]],
    array: Callable[[np.ndarray[Any, Any], str], Any],
    *ways: Callable[..., list[Any]],
    lengths: tuple[int, ...] = (FEW, MANY),
) -> None:
    for tokens in lengths:
        plain = numbers(tokens)
        truth = asked(*plain, backend="reference")
        for way, dtypes in itertools.product(ways, rows):
            operands = [array(a, d) for a, d in zip(plain, dtypes, strict=True)]
            for what in wrong(way(*operands), truth, dtypes):
                print(f"{title}, {way.__name__}, {tokens} tokens, {' '.join(dtypes)}: {what}")


def quickly_compiled() -> None:
    """Have LLVM make slower code in less time."""
    target = llvm.Target.from_triple(jit.machine().triple)
    features = llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=0, jit=True
    )
    jit.machine = lambda: machine  # type: ignore[assignment]


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    quickly_compiled()
    four, three = arrangements(4), arrangements(3)
    swept("NumPy", three, lambda a, d: a.astype(d), asked)
    swept("torch", four, tensor, asked, by_autograd)
    single = [row for row in four if "float64" not in row]
    for x64, rows, ways in ((True, four, (asked, by_jax)), (False, single, (by_jax,))):
        with jax.enable_x64(x64):
            # The core compiles each of its operations there; tests/amidmath has it.
            swept(f"JAX, x64 {x64}", rows, jax_array, *ways, lengths=(MANY,))
    print("swept")


if __name__ == "__main__":
    main()
