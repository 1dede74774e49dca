"""Peers: the code that people use today, each as its users call it."""

from __future__ import annotations

import functools
import shutil
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks import phases
from benchmarks.cases import (
    AB_PR,
    JAX_CASES,
    KL_PR,
    PLAIN_JS,
    PLAIN_KL,
    Case,
    Library,
)
from benchmarks.subjects import Subject, missing, no_cuda

Array = Any
Loss = Callable[..., Array]

KL_DIV = "F.kl_div"
CROSS_ENTROPY = "F.cross_entropy"
PLAIN = "plain form"
PAPERS = "papers' code"
TRL_GKD, TRL_CHUNKED = "TRL GKD", "TRL chunked divergence"
LIGER = "Liger chunked JSD"
LIGER_COMPILED = "Liger chunked JSD, compiled"
OPTAX = "optax KL"
MATMULS, NO_LOSS = "bare matmuls", "no loss"
DENSE = "F.kl_div on dense logits"


# ---------------------------------------------------------------------------------------------
# Libraries for the plain forms


@functools.cache
def torch_library() -> Library:
    """The functions of torch."""
    import torch

    return Library(
        torch.exp,
        lambda x: torch.log_softmax(x, -1),
        torch.logaddexp,
        lambda x: torch.logsumexp(x, -1),
    )


@functools.cache
def jax_library() -> Library:
    """The functions of JAX."""
    import jax
    import jax.numpy as jnp

    return Library(
        jnp.exp, jax.nn.log_softmax, jnp.logaddexp, lambda x: jax.nn.logsumexp(x, axis=-1)
    )


@functools.cache
def numpy_library() -> Library:
    """The functions of NumPy, for arrays and constants in extended precision."""
    import numpy as np

    def logsumexp(x: Array) -> Array:
        top = x.max(-1, keepdims=True)
        return (top + np.log(np.exp(x - top).sum(-1, keepdims=True)))[..., 0]

    def log_softmax(x: Array) -> Array:
        return x - logsumexp(x)[..., None]

    return Library(np.exp, log_softmax, np.logaddexp, logsumexp, np.longdouble, np.log)


# ---------------------------------------------------------------------------------------------
# Losses of student and teacher logits


def kl_div(student: Array, teacher: Array) -> Array:
    """KL(p‖q) as torch's documentation has it."""
    from torch.nn import functional

    log_q, log_p = functional.log_softmax(student, -1), functional.log_softmax(teacher, -1)
    return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def trl_gkd(student: Array, teacher: Array) -> Array:
    """GKDTrainer's generalised Jensen-Shannon loss at its default β."""
    return _gkd_loss()(student, teacher, beta=0.5)


@functools.cache
def _gkd_loss() -> Loss:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the experimental module may change
        from trl.experimental.gkd import GKDTrainer
    return GKDTrainer.generalized_jsd_loss


def papers(case: Case) -> Loss:
    """A loss of the assistant in the probability domain, as the papers' repositories write it.

    Probabilities in float32, mixed and normalised; products masked where a logit is infinite.
    """
    import torch
    from torch.nn import functional

    k, lam = 0.5 * (1.0 - case.alpha), case.lam

    def loss(student: Array, teacher: Array) -> Array:
        p = functional.softmax(teacher, dim=-1, dtype=torch.float32)
        q = functional.softmax(student, dim=-1, dtype=torch.float32)
        infinite = torch.isinf(student) | torch.isinf(teacher)
        mixed = lam * p + (1 - lam) * q if k == 1.0 else (lam * p**k + (1 - lam) * q**k) ** (1 / k)
        r = mixed / mixed.sum(-1, keepdim=True)
        if case.divergence == "KL":
            log_ratio = functional.log_softmax(teacher, dim=-1, dtype=torch.float32) - torch.log(r)
            terms = p * log_ratio
        else:
            a, b = 0.2, 0.7
            s = a + b
            terms = -(p**a * r**b - a / s * p**s - b / s * r**s) / (a * b)
        return torch.masked_fill(terms, infinite, 0.0).sum(-1).mean()

    return loss


def _of_torch(
    name: str, computes: str, loss: Loss, case: Case | None, needs: str = "torch"
) -> list[Subject]:
    """A peer of torch on the CPU, and where there is one on the GPU."""

    def on(device: str) -> Callable[[tuple[Array, ...]], phases.Phases]:
        return lambda arrays: phases.of_torch(loss, 1, arrays, device)

    absent = missing(*needs.split())
    return [
        Subject(name, "torch CPU", computes, on("cpu"), case, True, absent),
        Subject(name, "torch CUDA", computes, on("cuda"), case, True, absent or no_cuda()),
    ]


def _cross_entropy() -> list[Subject]:
    """Cross-entropy as torch has it, on the teacher's first choice as the label."""

    def on(device: str) -> Callable[[tuple[Array, ...]], phases.Phases]:
        def build(arrays: tuple[Array, ...]) -> phases.Phases:
            import torch
            from torch.nn import functional

            student, teacher = arrays
            labels = torch.from_numpy(teacher.argmax(-1)).to(device)
            return phases.of_torch(
                lambda logits: functional.cross_entropy(logits, labels), 1, (student,), device
            )

        return build

    name, absent = CROSS_ENTROPY, missing("torch")
    return [
        Subject(name, "torch CPU", "CE, hard labels", on("cpu"), None, True, absent),
        Subject(name, "torch CUDA", "CE, hard labels", on("cuda"), None, True, absent or no_cuda()),
    ]


def _plain_torch(case: Case) -> list[Subject]:
    def loss(student: Array, teacher: Array) -> Array:
        return case.plain(student, teacher, torch_library())

    return _of_torch(PLAIN, case.title, loss, case)


def _papers(case: Case) -> list[Subject]:
    loss: Loss | None = None

    def lazy(student: Array, teacher: Array) -> Array:
        nonlocal loss
        loss = loss or papers(case)
        return loss(student, teacher)

    return _of_torch(PAPERS, case.title, lazy, case)


def _plain_jax(case: Case) -> Subject:
    def loss(student: Array, teacher: Array) -> Array:
        return case.plain(student, teacher, jax_library())

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        return phases.of_jax(loss, 1, arrays)

    main, absent = case == KL_PR, missing("jax")
    return Subject(PLAIN, "JAX CPU", case.title, build, case, main, absent, phases.AT_ONCE)


def _optax() -> Subject:
    def loss(student: Array, teacher: Array) -> Array:
        import jax
        import optax

        log_q, log_p = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
        return optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()

    def build(arrays: tuple[Array, ...]) -> phases.Phases:
        return phases.of_jax(loss, 1, arrays)

    absent = missing("jax", "optax")
    computes = PLAIN_KL.title
    return Subject(OPTAX, "JAX CPU", computes, build, PLAIN_KL, True, absent, phases.AT_ONCE)


@functools.cache
def dense() -> tuple[Subject, ...]:
    """Peers on logits."""
    return (
        *_of_torch(KL_DIV, PLAIN_KL.title, kl_div, PLAIN_KL),
        *_cross_entropy(),
        *_of_torch(TRL_GKD, PLAIN_JS.title, trl_gkd, PLAIN_JS, "torch trl"),
        *_plain_torch(KL_PR),
        *_plain_torch(AB_PR),
        *_papers(KL_PR),
        *_papers(AB_PR),
        _optax(),
        *(_plain_jax(case) for case in JAX_CASES),
    )


# ---------------------------------------------------------------------------------------------
# Losses of hidden states and heads


def dense_linear(
    student_hidden: Array, student_head: Array, teacher_hidden: Array, teacher_head: Array
) -> Array:
    """F.kl_div on logits that are held whole."""
    return kl_div(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T)


def trl_chunked(beta: float) -> Loss:
    """DistillationTrainer's loss."""

    def loss(
        student_hidden: Array, student_head: Array, teacher_hidden: Array, teacher_head: Array
    ) -> Array:
        import torch
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        mask = torch.ones(student_hidden.shape[:1], device=student_hidden.device)
        return _chunked_divergence_loss(
            student_hidden, teacher_hidden, student_head, teacher_head, mask, beta
        )[0]

    return loss


def liger_chunked(compiled: bool) -> Loss:
    """Liger's chunked Jensen-Shannon loss, without its cross-entropy."""

    def loss(
        student_hidden: Array, student_head: Array, teacher_hidden: Array, teacher_head: Array
    ) -> Array:
        import torch
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDLoss

        rows, device = student_hidden.shape[0], student_hidden.device
        labels = torch.zeros(rows, dtype=torch.int64, device=device)
        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=compiled
        )
        loss: Array = module(student_hidden, student_head, teacher_hidden, teacher_head, labels)
        return loss

    return loss


def bare_chunk(vocabulary: int, device: str) -> int:
    """Rows in a chunk of the bare matmuls: as many as amidmath's own chunks have."""
    from amidmath.pairs.chunked import ACCELERATOR_BYTES, CPU_BYTES, FEWEST_ROWS

    budget = CPU_BYTES if device == "cpu" else ACCELERATOR_BYTES
    return int(max(FEWEST_ROWS, budget // (4 * 2 * vocabulary)))


def bare_matmuls(
    student_hidden: Array, student_head: Array, teacher_hidden: Array, teacher_head: Array
) -> tuple[Array, tuple[Array, Array]]:
    """The four products that any loss from hidden states needs, chunk by chunk, and nothing else.

    Student and teacher logits, then what the gradient of the logits (here the logits themselves)
    gives for the hidden states and the head.
    """
    import torch

    rows, vocabulary = student_hidden.shape[0], student_head.shape[0]
    step = bare_chunk(vocabulary, student_hidden.device.type)
    shape = (min(step, rows), vocabulary)
    student_logits, teacher_logits = (student_hidden.new_empty(shape) for _ in range(2))
    grad_hidden, grad_head = torch.empty_like(student_hidden), torch.zeros_like(student_head)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        count = part.stop - part.start
        s, t = student_logits[:count], teacher_logits[:count]
        torch.mm(student_hidden[part], student_head.T, out=s)
        torch.mm(teacher_hidden[part], teacher_head.T, out=t)
        torch.mm(s, student_head, out=grad_hidden[part])
        grad_head.addmm_(s.T, student_hidden[part])
    return t[0, 0], (grad_hidden, grad_head)


def _of_hidden(
    name: str, computes: str, loss: Loss, case: Case | None, absent: str = ""
) -> list[Subject]:
    def on(device: str) -> Callable[[tuple[Array, ...]], phases.Phases]:
        return lambda arrays: phases.of_torch(loss, 2, arrays, device)

    absent = missing("torch") or absent
    return [
        Subject(name, "torch CPU", computes, on("cpu"), case, True, absent),
        Subject(name, "torch CUDA", computes, on("cuda"), case, True, absent or no_cuda()),
    ]


def _bare() -> list[Subject]:
    def on(device: str) -> Callable[[tuple[Array, ...]], phases.Phases]:
        def build(arrays: tuple[Array, ...]) -> phases.Phases:
            import torch

            def both(*operands: Array) -> Any:
                result = bare_matmuls(*operands)
                if device == "cuda":
                    torch.cuda.synchronize()
                return result

            operands = tuple(torch.tensor(a, device=device) for a in arrays)
            return phases.of_calls(None, both, operands)

        return build

    absent, computes = missing("torch"), NO_LOSS
    return [
        Subject(MATMULS, "torch CPU", computes, on("cpu"), None, True, absent),
        Subject(MATMULS, "torch CUDA", computes, on("cuda"), None, True, absent or no_cuda()),
    ]


@functools.cache
def linear() -> tuple[Subject, ...]:
    """Peers from hidden states; gradients of the student's hidden states and head."""
    no_trl, no_liger = missing("trl"), missing("liger_kernel")
    compiles = bool(shutil.which("c++") or shutil.which("g++"))  # Liger's default
    return (
        *_bare(),
        *_of_hidden(DENSE, PLAIN_KL.title, dense_linear, PLAIN_KL),
        *_of_hidden(TRL_CHUNKED, PLAIN_KL.title, trl_chunked(0.0), PLAIN_KL, no_trl),
        *_of_hidden(TRL_CHUNKED, PLAIN_JS.title, trl_chunked(0.5), PLAIN_JS, no_trl),
        *_of_hidden(
            LIGER_COMPILED if compiles else LIGER,
            PLAIN_JS.title,
            liger_chunked(compiles),
            PLAIN_JS,
            no_liger,
        ),
    )
