"""Methods that compare teacher and student directly: the assistant is one of them."""

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array
from amidmath.divergences import AlphaBeta, ConcreteScore, Jeffreys, TotalVariation
from amidmath.losses.adaptive_kl import AdaptiveKL
from amidmath.losses.amid import AMiD
from amidmath.losses.loss import Loss
from amidmath.methods.method import method, positive_temperature, rest, shown

_TO_STUDENT = "no mixture: λ = 0, the assistant is the student"
_TO_TEACHER = "no mixture: λ = 1, the assistant is the teacher"


@method(lambda **_: f"KL(p‖q) has {_TO_STUDENT}")
def kl(temperature: float = 1.0) -> Loss:
    """Knowledge distillation, supervised or word-level KD: forward KL, KL(p‖q) per token.

    The gradient is (q - p)/T. Hinton et al. multiply the loss by T², which is left to the caller
    (``T**2 * am.methods.kl(T)``). Code that leaves out Σ p log p, as that of MiniLLM, DistiLLM,
    ABKD and TAID does, returns the cross-entropy instead: the same gradient, and a value that is
    larger by the teacher's entropy.

    Source: Hinton et al. (arXiv 1503.02531); docs: methods, N2.

    Args:
        temperature: divides both logits, positive.

    Raises:
        TypeError: a temperature that is not a number.
        ValueError: a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.kl()(student, teacher):.6f}")
        0.117993
    """
    return AMiD(order="pr", lam=0.0, temperature=positive_temperature("kl", temperature))


@method(lambda **_: f"KL(q‖p) has {_TO_TEACHER}")
def reverse_kl(temperature: float = 1.0) -> Loss:
    """Reverse KL, KL(q‖p) per token.

    Source: MiniLLM (arXiv 2306.08543) and its code's ``reverse_kl``; docs: methods, N2.

    Args:
        temperature: divides both logits, positive.

    Raises:
        TypeError: a temperature that is not a number.
        ValueError: a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.reverse_kl()(student, teacher):.6f}")
        0.107374
    """
    return AMiD(order="qr", lam=1.0, temperature=positive_temperature("reverse_kl", temperature))


@method(lambda **_: f"the single step of MiniLLM is KL(q‖p), with {_TO_TEACHER}")
def minillm(temperature: float = 1.0) -> Loss:
    """MiniLLM's single-step part: reverse KL, KL(q‖p) per token, on responses of the student.

    MiniLLM minimises the reverse KL of whole responses. Its gradient has two parts, and this is
    the one that is a loss of logits: the expectation of one step's reward log(p/q), taken exactly,
    the ``single_step_reg`` of its code. The rest is not: the policy gradient of the steps that
    follow, with length-normalised returns and PPO's clipping, sampling from a mixture of teacher
    and student with its importance weights, and the language-modelling loss on a corpus. Without
    them this is :func:`reverse_kl`, on whatever responses it is given.

    Source: MiniLLM (arXiv 2306.08543) and its code; docs: methods, N2.

    Args:
        temperature: divides both logits, positive.

    Raises:
        TypeError: a temperature that is not a number.
        ValueError: a temperature that is not positive.

    Example:
        >>> import amidmath as am
        >>> am.methods.minillm() == am.methods.reverse_kl()
        True
    """
    return AMiD(order="qr", lam=1.0, temperature=positive_temperature("minillm", temperature))


@method(lambda **_: f"KL(p‖q) + KL(q‖p), without halves, has {_TO_STUDENT}")
def jeffreys(temperature: float = 1.0) -> Loss:
    """Jeffreys divergence, KL(p‖q) + KL(q‖p) per token: the sum, not the mean.

    Source: Jeffreys, Proc. R. Soc. A 186 (1946) 453; a baseline in CSD (arXiv 2509.25837);
    docs: methods, N2.

    Args:
        temperature: divides both logits, positive.

    Raises:
        TypeError: a temperature that is not a number.
        ValueError: a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.jeffreys()(student, teacher):.6f}")
        0.225367
    """
    return AMiD(
        Jeffreys(), "pr", lam=0.0, temperature=positive_temperature("jeffreys", temperature)
    )


@method(lambda **_: f"½ Σ |p - q| has {_TO_STUDENT}")
def tvd(temperature: float = 1.0) -> Loss:
    """Total variation distance, ½ Σ |p - q| per token, as f-DISTILL has it.

    The gradient is a subgradient where p = q at a token. DistiLLM's and ABKD's code have the ½
    too.

    Source: f-DISTILL (arXiv 2307.15190); docs: methods, N2.

    Args:
        temperature: divides both logits, positive.

    Raises:
        TypeError: a temperature that is not a number.
        ValueError: a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.tvd()(student, teacher):.6f}")
        0.225367
    """
    return AMiD(
        TotalVariation(), "pr", lam=0.0, temperature=positive_temperature("tvd", temperature)
    )


@method(
    lambda reverse_weight, **_: (
        f"reverse_weight = {shown('reverse_weight', reverse_weight)} is the share of KL(q‖p), "
        f"KL(p‖q) has {rest('reverse_weight', reverse_weight)}; it is no λ: nothing is mixed"
    )
)
def wsd(reverse_weight: float | Array = 0.5, temperature: float = 1.0) -> Loss:
    """WSD, the weighted sum of forward and reverse KL: (1-c) KL(p‖q) + c KL(q‖p) per token.

    A baseline of ABKD, whose code calls c ``lam``; DistiLLM's code has it as ``symmetric_kl``.
    :func:`jeffreys` is twice the one with c = ½.

    Source: ABKD (arXiv 2505.04560), its code; docs: methods, N2.

    Args:
        reverse_weight: c in [0, 1], the share of the reverse KL: a number, or an array that
            broadcasts to the positions.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``reverse_weight`` outside [0, 1], or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.wsd(0.25)(student, teacher):.6f}")
        0.115338
    """
    c = checks.weight("wsd's reverse_weight", reverse_weight)
    temperature = positive_temperature("wsd", temperature)
    forward = AMiD(order="pr", lam=0.0, temperature=temperature)
    reverse = AMiD(order="qr", lam=1.0, temperature=temperature)
    both: Loss = forward * (1.0 - c) + reverse * c
    return both


@method(
    lambda alpha, beta, **_: (
        f"alpha = {shown('alpha', alpha)} is the exponent of p in the α-β divergence, "
        f"beta = {shown('beta', beta)} that of q; alpha is not AMiD's α, and there is "
        f"{_TO_STUDENT}"
    )
)
def abkd(alpha: float = 0.2, beta: float = 0.7, temperature: float = 1.0) -> Loss:
    """ABKD's α-β divergence of p and q per token.

    D(p‖q) = -1/(αβ) Σ [p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β)], and its limits where α, β or
    α + β is 0; α = 1, β → 0 is KL(p‖q), α → 0, β = 1 is KL(q‖p). ABKD's code is not continuous
    there: with one exponent or their sum 0 it has 1/α (or 1/β) where the limit has the square.

    Source: ABKD (arXiv 2505.04560) and its code, which have 0.2 and 0.7; docs: methods, N2.

    Args:
        alpha: α, the exponent of the teacher; not the α of the mixture.
        beta: β, the exponent of the student.
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument that is not a number.
        ValueError: α or β not finite, or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.abkd()(student, teacher):.6f}")
        0.124014
    """
    exponents = checks.number("abkd's alpha", alpha), checks.number("abkd's beta", beta)
    temperature = positive_temperature("abkd", temperature)
    return AMiD(AlphaBeta(*exponents), "pr", lam=0.0, temperature=temperature)


_WHOSE = {"teacher": "x", "student": "y", "uniform": "uniform"}


@method(
    lambda first, second, **_: (
        f"pairs of tokens are weighed by {first} × {second}; no weight is λ, and there is "
        f"{_TO_STUDENT}"
    )
)
def csd(first: str = "student", second: str = "student", temperature: float = 1.0) -> Loss:
    """Concrete score distillation: ½ Σᵢⱼ w¹ᵢ w²ⱼ (δᵢ - δⱼ)² per token, with δ = log q - log p.

    w¹ and w² are p, q or 1/V, constant in the derivatives; which is first makes no difference. The
    gradient is [w²(δ - E₁δ) + w¹(δ - E₂δ)]/T, with Eⱼ the mean under wʲ.

    Its code's ``csd`` is "student" for both, and "US" and "TS" of its ``csd_weighting_function``
    are uniform or teacher, and student. Its gradients are **half** of these: it steps along
    w(δ - Eδ), and ``0.5 * am.methods.csd()`` reproduces it. Its ``temp`` tempers the weights only;
    here the temperature divides all logits, as everywhere, and δ with them.

    Source: CSD (arXiv 2509.25837) and its code; docs: methods, N4.

    Args:
        first: w¹: "teacher", "student" or "uniform".
        second: w², likewise.
        temperature: divides both logits, positive.

    Raises:
        TypeError: a temperature that is not a number.
        ValueError: an unknown weight, or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.csd()(student, teacher):.6f}")
        0.187500
    """
    weights = (
        _WHOSE[checks.choice(f"csd's {name}", value, tuple(_WHOSE))]
        for name, value in (("first", first), ("second", second))
    )
    return AMiD(
        ConcreteScore(*weights), "pr", lam=0.0, temperature=positive_temperature("csd", temperature)
    )


@method(
    lambda mu, **_: (
        f"mu = {shown('mu', mu)} is the teacher's mass in the head, whose share of Σ |p - q| "
        "weighs KL(p‖q), and the tail's KL(q‖p); it is no λ: nothing is mixed"
    )
)
def akl(mu: float | Array = 0.5, temperature: float = 1.0) -> Loss:
    """AKL, adaptive KL: [g_head KL(p‖q) + g_tail KL(q‖p)]/(g_head + g_tail) per token.

    g_head is Σ |p - q| over the head, the teacher's most probable tokens that have the mass μ, and
    g_tail that over all others; both are constant in the derivatives. Where p = q the loss and its
    gradient are 0, which is 0/0 in the authors' code. That code leaves the token whose
    probability reaches μ to the tail, unless it is the first; here it is the head's last.

    The head takes a sort, so that this one method has no compiled kernel:
    ``backend="compiled"`` is an error, None takes the array core.

    Source: AKL (arXiv 2404.02657); docs: methods, N5.

    Args:
        mu: μ, the teacher's mass in the head, in [0, 1]: a number, or an array that broadcasts to
            the positions. At 1 it is KL(p‖q), at 0 KL(q‖p).
        temperature: divides both logits, positive.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: ``mu`` outside [0, 1], or a temperature that is not positive.

    Example:
        >>> import numpy as np, amidmath as am
        >>> student, teacher = np.zeros((2, 4)), np.eye(2, 4)
        >>> print(f"{am.methods.akl(0.4)(student, teacher):.6f}")
        0.112683
    """
    return AdaptiveKL(checks.weight("akl's mu", mu), positive_temperature("akl", temperature))
