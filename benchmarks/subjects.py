"""Who is measured: amidmath on every backend that is here, and what people use today.

A subject that cannot run here says why, and is reported as absent.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import amidmath as am
from benchmarks import phases
from benchmarks.cases import (
    AB_PR,
    JAX_CASES,
    KL_CASES,
    KL_PR,
    OTHER_CASES,
    PLAIN_JS,
    PLAIN_KL,
    Case,
)

Array = Any
OURS = "amidmath"
IN_PLACE = "amidmath, in place"


@dataclass(frozen=True)
class Subject:
    """One way to compute one loss.

    Args:
        name: whose code it is.
        engine: what runs it: "NumPy", "torch CPU", "JAX CPU", ….
        computes: the loss, as a formula.
        build: arrays to :data:`benchmarks.phases.Phases`.
        case: the loss where the plain form has it, to measure the error by; None otherwise.
        main: measured in all phases and shapes, not just forward and backward in the first.
        absent: why it cannot run here, "" if it can.
        timed: the phases that it has.
    """

    name: str
    engine: str
    computes: str
    build: Callable[[tuple[Array, ...]], phases.Phases]
    case: Case | None = None
    main: bool = False
    absent: str = ""
    timed: tuple[str, ...] = phases.PHASES

    @property
    def key(self) -> str:
        """Unique among the subjects of a table."""
        return f"{self.name} {self.engine} {self.computes}"


def missing(*modules: str) -> str:
    """Which of the modules are not installed, as a reason; "" if all are."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{' and '.join(absent)} not installed" if absent else ""


@functools.cache
def no_cuda() -> str:
    """Why torch has no GPU to run on; "" if it has."""
    if reason := missing("torch"):
        return reason
    import torch

    return "" if torch.cuda.is_available() else "no CUDA device"


@functools.cache
def no_cupy() -> str:
    """Why CuPy cannot run; "" if it can."""
    if reason := missing("cupy"):
        return reason
    import cupy

    return "" if cupy.cuda.is_available() else "no CUDA device"


def _numpy(case: Case, main: bool = False) -> Subject:
    loss = case.loss

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        return phases.of_calls(loss, loss.value_and_grad, arrays)

    return Subject(OURS, "NumPy", case.title, build, case, main, missing("numpy"), phases.AT_ONCE)


def in_place(case: Case) -> Subject:
    """The gradient in the place of the student's logits, so that it needs no memory of its own."""
    loss = case.loss

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        student, teacher = arrays
        kept = student.copy()

        def again() -> tuple[tuple[Any, ...], dict[str, Any]]:
            student[...] = kept
            return (student, teacher), {"overwrite_student": True}

        return {"both": phases.Timed(loss.value_and_grad, again)}

    return Subject(
        IN_PLACE, "NumPy", case.title, build, case, absent=missing("numpy"), timed=("both",)
    )


def _torch(case: Case, main: bool = False, device: str = "cpu") -> Subject:
    loss = case.loss

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        return phases.of_torch(loss, 1, arrays, device)

    absent = missing("torch") if device == "cpu" else no_cuda()
    return Subject(OURS, f"torch {device.upper()}", case.title, build, case, main, absent)


def _jax(case: Case, main: bool = False) -> Subject:
    loss = case.loss

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        return phases.of_jax(loss, 1, arrays)

    return Subject(OURS, "JAX CPU", case.title, build, case, main, missing("jax"), phases.AT_ONCE)


def _cupy(case: Case, main: bool = False) -> Subject:
    loss = case.loss

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        import cupy

        def finished(f: Callable[..., Any]) -> Callable[..., Any]:
            def call(*operands: Array) -> Any:
                result = f(*operands)
                cupy.cuda.get_current_stream().synchronize()
                return result

            return call

        operands = tuple(cupy.asarray(a) for a in arrays)
        return phases.of_calls(finished(loss), finished(loss.value_and_grad), operands)

    return Subject(OURS, "CuPy CUDA", case.title, build, case, main, no_cupy(), phases.AT_ONCE)


def _reference(case: Case) -> Subject:
    """The array core, which any library that follows the standard runs."""
    loss = case.loss

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        import torch

        return phases.of_calls(
            functools.partial(loss, backend="reference"),
            functools.partial(loss.value_and_grad, backend="reference"),
            tuple(torch.tensor(a) for a in arrays),
        )

    name, absent = f"{OURS} reference", missing("torch")
    return Subject(name, "torch CPU", case.title, build, case, True, absent, phases.AT_ONCE)


@functools.cache
def dense() -> tuple[Subject, ...]:
    """Amidmath on logits."""
    main = (KL_PR, AB_PR, PLAIN_KL, PLAIN_JS)
    others = tuple(case for case in (*KL_CASES, *OTHER_CASES) if case not in main)
    return (
        *(_torch(case, True) for case in main),
        *(_torch(case) for case in others),
        *(_numpy(KL_PR, True), _numpy(AB_PR)),
        *(_jax(case, main=case == KL_PR) for case in JAX_CASES),
        _reference(KL_PR),
        *(_torch(case, True, "cuda") for case in main),
        *(_torch(case, False, "cuda") for case in others),
        *(_cupy(case, True) for case in (KL_PR, AB_PR)),
    )


def _linear(case: Case, device: str = "cpu") -> Subject:
    loss = case.loss
    absent = missing("torch") if device == "cpu" else no_cuda()

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        def of_states(hidden: Array, head: Array, theirs: Array, their_head: Array) -> Array:
            return loss(am.Hidden(hidden, head), am.Hidden(theirs, their_head))

        return phases.of_torch(of_states, 2, arrays, device)

    return Subject(
        OURS + " linear", f"torch {device.upper()}", case.title, build, case, True, absent
    )


@functools.cache
def linear() -> tuple[Subject, ...]:
    """Amidmath from hidden states; gradients of the student's hidden states and head."""
    cases = (KL_PR, AB_PR, PLAIN_KL, PLAIN_JS)
    return (*(_linear(case) for case in cases), *(_linear(case, "cuda") for case in cases))
