"""Methods with an assistant between teacher and student."""

from typing import Any

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.divergences import REGISTRY, Divergence
from amidmath.divergences import divergence as divergence_named
from amidmath.losses.alpha_jensen_shannon import AlphaJensenShannon
from amidmath.losses.amid import ORDERS, AMiD
from amidmath.losses.loss import Loss
from amidmath.methods.method import method, positive_temperature, rest, shown

KINDS = ("skl", "srkl")


def _weighs(name: str, value: Any, whose: str, *, geometric: bool = False) -> str:
    """The meaning of a weight of the teacher or of the student, and λ."""
    here, there = shown(name, value), rest(name, value)
    p, q = (here, there) if whose == "teacher" else (there, here)
    mixture = f"r ∝ p^{p}·q^{q}" if geometric else f"r = {p}·p + {q}·q"
    return f"{name} = {here} weighs the {whose} in {mixture}, so λ = {p} (λ weighs the teacher)"


@method(lambda beta, **_: _weighs("beta", beta, "teacher"))
def gkd(beta: float | Array = 0.5, temperature: float = 1.0) -> Loss:
    """GKD's generalised Jensen-Shannon divergence, β KL(p‖m) + (1-β) KL(q‖m) per token.

    m = β p + (1-β) q, so β weighs the teacher. It is the plain sum, which goes to 0 with β or
    1 - β: D/β has the limit KL(p‖q) for β → 0, which is :func:`kl`, and D/(1-β) has KL(q‖p) for
    β → 1, which is :func:`reverse_kl`. TRL's GKDTrainer has the same β and the same sum in
    between, but jumps to KL(p‖q) at β = 0 and KL(q‖p) at β = 1.

    The equal of ``beta * am.AMiD(order="pr", lam=beta) + (1 - beta) * am.AMiD(order="qr",
    lam=beta)``, in one pass over the rows for a number β; for an array it is that sum.

    Source: GKD (arXiv 2306.13649); docs: methods, N3.

    Args:
        beta: β in [0, 1], a number, or an array that broadcasts to the positions.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``beta`` outside [0, 1], or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.gkd(0.5)(student, teacher):.6f}")
        0.027812
    """
    beta = checks.weight("gkd's beta", beta)
    temperature = positive_temperature("gkd", temperature)
    if not checks.is_array(beta):
        return AlphaJensenShannon(-1.0, beta, temperature)
    forward = AMiD(order="pr", lam=beta, temperature=temperature)
    reverse = AMiD(order="qr", lam=beta, temperature=temperature)
    both: Loss = forward * beta + reverse * (1.0 - beta)
    return both


@method(lambda kind, skew, **_: _weighs("skew", skew, "teacher" if kind == "skl" else "student"))
def distillm(kind: str = "skl", skew: float | Array = 0.1, temperature: float = 1.0) -> Loss:
    """DistiLLM's skew KL or skew reverse KL per token.

    "skl" is KL(p‖c p + (1-c) q), "srkl" KL(q‖(1-c) p + c q): the skew c weighs the distribution
    that the divergence is from, so the **teacher** in the one and the **student** in the other.
    DistiLLM's code of the first leaves out Σ p log p, which has no gradient.

    Source: DistiLLM (arXiv 2402.03898) and its code, which have 0.1; docs: methods, N3.

    Args:
        kind: "skl" or "srkl".
        skew: c in [0, 1], a number, or an array that broadcasts to the positions.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown kind, ``skew`` outside [0, 1], or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> for kind in ("skl", "srkl"):
        ...     print(f"{am.methods.distillm(kind)(student, teacher):.6f}")
        0.092969
        0.087971
    """
    checks.choice("distillm's kind", kind, KINDS)
    skew = checks.weight("distillm's skew", skew)
    return _skewed(kind, skew, positive_temperature("distillm", temperature), detached=False)


def _says_distillm2(
    skew_teacher: Any, skew_student: Any, beta: Any, detach_mixture: bool, **_: Any
) -> str:
    held = ", r held constant" if detach_mixture else ""
    times = "(2 - beta)" if checks.is_array(beta) else f"{2.0 - float(beta):g}"
    return (
        f"on the teacher's rows, times {times}: "
        f"{_weighs('skew_teacher', skew_teacher, 'teacher')}; on the student's rows, times "
        f"{shown('beta', beta)}: {_weighs('skew_student', skew_student, 'student')}{held}"
    )


@method(_says_distillm2)
def distillm2(
    skew_teacher: float | Array = 0.1,
    skew_student: float | Array = 0.1,
    beta: float | Array = 1.0,
    detach_mixture: bool = False,
    temperature: float = 1.0,
) -> dict[str, Loss]:
    """DistiLLM-2: skew KL on responses of the teacher, skew reverse KL on those of the student.

    (2-β) KL(p‖c p + (1-c) q) per token of responses that the teacher wrote, and
    β KL(q‖(1-c') p + c' q) per token of those of the student, to the same prompts. The skew c
    weighs the teacher in the first, c' the student in the second, as in :func:`distillm`.

    Its trainer averages over the tokens of every response, and the sum of both over the pairs. Its
    skews start at 0.1 and may follow :func:`distillm2_skew`, one number a response; its β is 1, or
    grows with :func:`distillm2_beta`. Its code holds the mixture of the second constant in the
    gradient, which DistiLLM's does not and the formula does not say: ``detach_mixture=True``
    reproduces that.

    Source: DistiLLM-2 (arXiv 2503.07067); weights and schedules are those of its code;
    docs: methods, N3 and N6.

    Args:
        skew_teacher: c in [0, 1], a number, or an array that broadcasts to the positions.
        skew_student: c', likewise.
        beta: β in [0, 2], likewise.
        detach_mixture: hold the mixture of the student's rows constant in the gradient.
        temperature: divides both logits, positive.

    Returns:
        {"teacher": …, "student": …}, the losses of the rows that each wrote.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a skew outside [0, 1], ``beta`` outside [0, 2], or a temperature that is not
            positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> losses = am.methods.distillm2(beta=1.5)
        >>> for source, loss in losses.items():
        ...     print(source, f"{loss(student, teacher):.6f}")
        teacher 0.046485
        student 0.131957
    """
    checks.flag("distillm2's detach_mixture", detach_mixture)
    skew_teacher = checks.weight("distillm2's skew_teacher", skew_teacher)
    skew_student = checks.weight("distillm2's skew_student", skew_student)
    beta = checks.weight("distillm2's beta", beta, high=2.0)
    temperature = positive_temperature("distillm2", temperature)
    return {
        "teacher": _skewed("skl", skew_teacher, temperature, detached=False) * (2.0 - beta),
        "student": _skewed("srkl", skew_student, temperature, detached=detach_mixture) * beta,
    }


def _skewed(kind: str, skew: Any, temperature: float, *, detached: bool) -> AMiD:
    if kind == "skl":
        return AMiD(order="pr", lam=skew, temperature=temperature)
    lam = 1.0 - skew
    return AMiD(order="qr", lam=lam, temperature=temperature, detach_assistant=detached)


@method(lambda t, **_: _weighs("t", t, "teacher", geometric=True) + ", r held constant")
def taid(t: float | Array = 0.4, temperature: float = 1.0) -> Loss:
    """TAID: KL(p_t‖q) per token, p_t = softmax((1-t) s + t z) of student's and teacher's logits.

    p_t is the geometric mixture of p and q, t weighs the teacher, and it is held constant: the
    gradient is (q - p_t)/T. t goes from 0.4 to 1 over training, by TAID's adaptive rule from one
    value of the loss to the next; its code feeds the rule with -Σ p_t log q, larger than this
    loss by the entropy of p_t.

    Source: TAID (arXiv 2501.16937) and its code, which start at t = 0.4; docs: methods, N3.

    Args:
        t: in [0, 1], a number, or an array that broadcasts to the positions.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``t`` outside [0, 1], or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.taid(0.5)(student, teacher):.6f}")
        0.027033
    """
    t = checks.weight("taid's t", t)
    temperature = positive_temperature("taid", temperature)
    return AMiD(order="rq", alpha=1.0, lam=t, temperature=temperature, detach_assistant=True)


def _says_amid(divergence: Any, order: str, alpha: Any, lam: Any, **_: Any) -> str:
    named = divergence if isinstance(divergence, str) else type(divergence).__name__
    return (
        f"lam = {shown('lam', lam)} weighs the teacher in the α-mixture r of alpha = "
        f"{shown('alpha', alpha)}, so λ = {shown('lam', lam)} (λ weighs the teacher), and the loss "
        f"is {named} as D({order[0]}‖{order[1]})"
    )


@method(_says_amid)
def amid(
    divergence: str | Divergence = "kl",
    order: str = "pr",
    alpha: float | Array = -1.0,
    lam: float | Array = 0.1,
    temperature: float = 1.0,
) -> Loss:
    """AMiD: a divergence between the α-mixture assistant r and teacher or student, per token.

    :class:`amidmath.AMiD` with its divergence by name, as command lines have it.

    Source: AMiD (arXiv 2510.15982), with λ = 0.1; docs: methods, N3.

    Args:
        divergence: a divergence, or the name of one that needs no parameters, such as "kl".
        order: "pr", "rp", "qr" or "rq".
        alpha: α in [-∞, ∞], a number, or an array that broadcasts to the positions.
        lam: λ in [0, 1], the weight of the teacher, likewise.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an unknown divergence or order, or a number out of its range.

    Example:
        >>> import amidmath as am
        >>> am.methods.amid("kl", "pr", -1.0, 0.1) == am.methods.distillm("skl", 0.1)
        True
    """
    if isinstance(divergence, str):
        checks.choice("amid's divergence", divergence, sorted(REGISTRY))
        divergence = divergence_named(divergence)
    checks.choice("amid's order", order, ORDERS)
    alpha, lam = checks.alpha("amid's alpha", alpha), checks.weight("amid's lam", lam)
    return AMiD(divergence, order, alpha, lam, positive_temperature("amid", temperature))
