"""Closed forms of the f_α-means: values, and derivatives by every source, weight and α."""

import math
from dataclasses import dataclass

from amidmath.arrays import checks, dispatch, libraries
from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials
from amidmath.formulas.assistant import exponents, log_mixture, mixture_ratios_of
from amidmath.formulas.assistant_derivatives import by_alpha, by_lam, kl_rate, shares
from amidmath.formulas.differentiated import differentiates, held, undifferentiated
from amidmath.formulas.pointwise import expm1_quotient, log_near_one, ratio_of, weighted


@dataclass(frozen=True)
class Mean:
    """The f_α-mean of K sources along an axis.

    Operands: the sources, then the weights where ``weights`` is None, then α where ``k`` is None;
    all of one number of axes, broadcast against the sources.

    Args:
        k: the exponent, None for an operand α.
        weights: the K weights, None for an operand.
        axis: the axis of the sources.
        linear: take and give numbers instead of their logarithms.
    """

    k: float | None
    weights: tuple[float, ...] | None
    axis: int
    linear: bool = False

    def __call__(
        self, sources: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """The means, without the axis, and the derivatives asked for; docs: mixtures, M1, M2."""
        if knobs and differentiates(xp):
            moving = _with_moving_knobs(self, (sources,), knobs, self.axis, self.linear, xp)
            return moving, (None,) * len(needs)
        dtype = checks.computing_dtype(xp, sources)
        x = xp.astype(sources, dtype, copy=False)
        remaining = [xp.astype(knob, dtype, copy=False) for knob in knobs]
        if self.weights is None:
            raw = remaining.pop(0)
            total = xp.sum(raw, axis=self.axis, keepdims=True)
            lam = raw / total
        else:
            lam, total = along(self.weights, x, self.axis, xp), 1.0
        k = exponents(remaining.pop(0), xp) if self.k is None else self.k
        lead, d = _to_the_leader(x, lam, k, self.axis, self.linear, xp)
        shift, pi = _shift(d, lam, k, self.axis, xp)
        if self.linear:
            mean = lead * _exp_shift(shift, d, lam, k, self.axis, xp)
            mean = xp.where(lead == 0.0, lead, mean)
        else:
            mean = lead + shift

        partials: list[Array] = []
        if any(needs):
            over = d - shift  # log(x_j/M)
            partials = self._partials(mean, over, pi, lam, total, k, xp)
        value = xp.squeeze(mean, axis=self.axis)
        operands = (sources, *knobs)
        return value, _wanted(partials, operands, needs, xp)

    def _partials(
        self,
        mean: Array,
        over: Array,
        pi: Array,
        lam: Array,
        total: Array | float,
        k: Array | float,
        xp: Namespace,
    ) -> list[Array]:
        scale = mean if self.linear else xp.ones_like(mean)
        by_source = pi
        if self.linear:
            each = xp.zeros_like(over) + k
            extreme = xp.isinf(each)
            power = _power(over, xp.where(extreme, 1.0, each) - 1.0, xp)
            by_source = xp.where(extreme, pi, lam * power)
        result = [xp.where(lam == 0.0, 0.0, by_source)]
        if self.weights is None:
            result.append(weighted(scale, expm1_quotient(k, over, xp), xp) / total)
        if self.k is None:
            result.append(weighted(scale, _by_alpha(over, lam, k, self.axis, xp), xp))
        return result


def along(weights: tuple[float, ...], like: Array, axis: int, xp: Namespace) -> Array:
    """Numbers as an array along an axis, in the dtype and on the device of another one."""
    shape = [1] * like.ndim
    shape[axis] = len(weights)
    device = libraries.device(like)
    return xp.reshape(xp.asarray(weights, dtype=like.dtype, device=device), tuple(shape))


def _to_the_leader(
    x: Array, lam: Array, k: Array | float, axis: int, linear: bool, xp: Namespace
) -> tuple[Array, Array]:
    """The source that leads the sum of powers (largest for k >= 0), and every log ratio to it."""
    up = (
        (1.0 if k >= 0.0 else -1.0)
        if isinstance(k, float)
        else xp.where(k >= 0.0, 1.0, xp.zeros_like(k) - 1.0)
    )
    dropped = lam == 0.0
    lead = up * xp.max(xp.where(dropped, -xp.inf, up * x), axis=axis, keepdims=True)
    if not linear:
        finite = xp.isfinite(lead)
        return lead, xp.where(finite, x - xp.where(finite, lead, 0.0), 0.0)
    usable = (lead > 0.0) & xp.isfinite(lead)
    base = xp.where(usable, lead, 1.0)
    excess = (x - base) / base
    near = xp.abs(excess) < 0.5
    far = xp.log(xp.where(near, 1.0, x)) - xp.log(base)
    d = xp.where(near, xp.log1p(xp.where(near, excess, 0.0)), far)
    return lead, xp.where(usable, d, 0.0)


def _shift(d: Array, lam: Array, k: Array | float, axis: int, xp: Namespace) -> tuple[Array, Array]:
    """Log M less the leader's logarithm, and π_j; docs: mixtures, M2."""
    d = xp.where(lam == 0.0, 0.0, d)

    def total(a: Array) -> Array:
        return xp.sum(a, axis=axis, keepdims=True)

    def geometric() -> tuple[Array, Array]:
        return total(weighted(lam + xp.zeros_like(d), d, xp)), lam + xp.zeros_like(d)

    def extreme() -> tuple[Array, Array]:
        tied = xp.where(d == 0.0, lam + xp.zeros_like(d), xp.zeros_like(d))
        return xp.zeros_like(total(d)), tied / total(tied)

    def power(k: Array | float) -> tuple[Array, Array]:
        powers = lam * xp.exp(k * d)
        sums = total(powers)
        excess = total(lam * xp.expm1(k * d))
        return log_near_one(excess, xp.log(sums), xp) / k, powers / sums

    if isinstance(k, float):
        return geometric() if k == 0.0 else extreme() if math.isinf(k) else power(k)
    flat, sharp = k == 0.0, xp.isinf(k)
    result = power(xp.where(flat | sharp, 1.0, k))
    for holds, values in ((flat, geometric()), (sharp, extreme())):
        result = tuple(xp.where(holds, a, b) for a, b in zip(values, result, strict=True))
    return result


def _exp_shift(
    shift: Array, d: Array, lam: Array, k: Array | float, axis: int, xp: Namespace
) -> Array:
    """M over the leader: a power where its logarithm would be large; docs: mixtures, M10."""
    k = xp.zeros_like(shift) + k
    finite = (k != 0.0) & ~xp.isinf(k)
    k = xp.where(finite, k, 1.0)
    d = xp.where(lam == 0.0, 0.0, d)
    sums = xp.sum(lam * xp.exp(k * d), axis=axis, keepdims=True)
    far = finite & (sums < 0.25) & (xp.abs(k) < 1e3)
    return xp.where(far, xp.pow(xp.where(far, sums, 1.0), 1.0 / k), xp.exp(shift))


def _power(log_x: Array, c: Array, xp: Namespace) -> Array:
    """x^c from log x, where 0 to the 0 is 1."""
    return xp.where(c == 0.0, 1.0, xp.exp(xp.where(c == 0.0, 1.0, c) * log_x))


def _by_alpha(over: Array, lam: Array, k: Array | float, axis: int, xp: Namespace) -> Array:
    """-KL(π‖λ)/(2k²), and -Var_λ(log x)/4 at k = 0; docs: mixtures, M9."""
    k = xp.zeros_like(over) + k
    terms = weighted(lam + xp.zeros_like(over), kl_rate(k, -over, xp), xp)
    return -0.5 * xp.sum(terms, axis=axis, keepdims=True)


@dataclass(frozen=True)
class Mixture:
    """log r̃ of teacher and student, elementwise; then α where ``k`` is None, λ where ``lam`` is."""

    k: float | None
    lam: float | None

    def __call__(
        self, log_p: Array, log_q: Array, *knobs: Array, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """Log r̃ and its derivatives; docs: mixtures, M3 to M6, M8, M9."""
        if knobs and differentiates(xp):
            moving = _with_moving_knobs(self, (log_p, log_q), knobs, None, False, xp)
            return moving, (None,) * len(needs)
        dtype = checks.computing_dtype(xp, log_p, log_q)
        p, q, *remaining = (xp.astype(a, dtype, copy=False) for a in (log_p, log_q, *knobs))
        k = exponents(remaining.pop(0), xp) if self.k is None else self.k
        lam = remaining.pop(0) if self.lam is None else self.lam
        ratio = ratio_of(p, q, p - q, xp)
        _, _, pi, w = ratios = mixture_ratios_of(ratio, k, lam, xp)
        value = log_mixture(p, q, ratios, xp)
        partials = [pi, w]
        if any(needs[2:]):
            exists = value > -xp.inf
            at = shares(k, lam, ratio, xp)
            if self.k is None:
                partials.append(xp.where(exists, by_alpha(k, lam, at, ratios, xp), 0.0))
            if self.lam is None:
                partials.append(xp.where(exists, by_lam(k, at, ratios, xp), 0.0))
        return value, _wanted(partials, (log_p, log_q, *knobs), needs, xp)


@dataclass(frozen=True)
class LogTotal:
    """log Σ exp along an axis."""

    axis: int

    def __call__(
        self, logs: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """The logarithm of the total, and each one's share in it."""
        log_z, shifted = log_sum_exp(logs, self.axis, xp)
        log_z = xp.squeeze(log_z, axis=self.axis)
        return log_z, (xp.exp(shifted) if needs[0] else None,)


def log_sum_exp(logs: Array, axis: int, xp: Namespace) -> tuple[Array, Array]:
    """Return log Σ exp along an axis (kept), and logs less it; -inf and -inf if all are."""
    peak, log_total, logs = log_softmax(logs, axis, xp)
    return peak + log_total, logs


def log_softmax(logits: Array, axis: int, xp: Namespace) -> tuple[Array, Array, Array]:
    """The largest logit (0 if all are -inf), log Σ exp of the logits less it, and log-softmax.

    Apart, as the sum of the two would round away what lies below the largest logit.
    """
    peak = xp.max(logits, axis=axis, keepdims=True)
    empty = peak == -xp.inf
    peak = xp.where(empty, 0.0, peak)
    below = logits - peak
    log_total = xp.log(xp.sum(xp.exp(below), axis=axis, keepdims=True))
    return peak, log_total, below - xp.where(empty, 0.0, log_total)


def log_normalized(logs: Array, axis: int, xp: Namespace, backend: str | None = None) -> Array:
    """The logarithms less that of their total along an axis; -inf where all are."""
    log_z = dispatch.apply(LogTotal(axis), axis, logs, backend=backend)
    log_z = xp.expand_dims(log_z, axis=axis)
    exists = log_z > -xp.inf
    return xp.where(exists, logs - xp.where(exists, log_z, 0.0), -xp.inf)


def _with_moving_knobs(
    form: ClosedForm,
    sources: tuple[Array, ...],
    knobs: tuple[Array, ...],
    axis: int | None,
    linear: bool,
    xp: Namespace,
) -> Array:
    """The value with the knobs held, and what it owes to them; docs: mixtures, M13.

    The limits do not contain the knobs, whose derivatives are those of the closed form.
    """
    plain = undifferentiated(xp)
    still = tuple(held(knob, xp) for knob in knobs)
    value, _ = form(*sources, *still, needs=(False,) * (len(sources) + len(knobs)), xp=plain)
    middle = tuple(
        xp.where(xp.isinf(constant), constant, 0.5 * (knob + constant))
        for knob, constant in zip(knobs, still, strict=True)
    )
    needs = (*(False for _ in sources), *(True for _ in knobs))
    there, partials = form(*sources, *middle, needs=needs, xp=plain)
    owed = xp.zeros_like(value)
    for knob, constant, by in zip(knobs, still, partials[len(sources) :], strict=True):
        change = xp.where(xp.isinf(constant), 0.0, knob - constant)
        moved = change * xp.where(xp.isfinite(by), by, 0.0)
        owed = owed + (moved if axis is None else xp.sum(moved, axis=axis))
    if not linear:
        return value + owed
    # As a factor, since the limits of the mean by which its derivatives are scaled lack them too.
    zero = (there == 0.0) | ~xp.isfinite(there)
    factor = xp.where(zero, 0.0, value)
    return value + factor * xp.expm1(xp.where(zero, 0.0, owed / xp.where(zero, 1.0, there)))


def _wanted(
    partials: list[Array], operands: tuple[Array, ...], needs: tuple[bool, ...], xp: Namespace
) -> Partials:
    """Each derivative in its operand's dtype, None where it was not asked for."""
    filled = partials + [None] * (len(operands) - len(partials))
    return tuple(
        xp.astype(partial, operand.dtype, copy=False) if need else None
        for partial, operand, need in zip(filled, operands, needs, strict=True)
    )
