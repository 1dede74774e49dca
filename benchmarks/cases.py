"""The losses that are measured, each as amidmath's loss and as the form a textbook gives.

The plain form is what a user writes who has the formulas and a library that differentiates: what
the closed forms are timed against, and in float64 what every subject's error is measured from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import amidmath as am

Array = Any


@dataclass(frozen=True)
class Library:
    """The functions of a library that the plain forms are made of; the axis is the last.

    Constants are Python's numbers, unless the arrays have more digits than those.
    """

    exp: Callable[[Array], Array]
    log_softmax: Callable[[Array], Array]
    logaddexp: Callable[[Array, Array], Array]
    logsumexp: Callable[[Array], Array]
    constant: Callable[[float], Any] = float
    log: Callable[[Any], Any] = math.log


def _kl(x: Array, y: Array, lib: Library) -> Array:
    return (lib.exp(x) * (x - y)).sum(-1)


def _alpha_beta(x: Array, y: Array, lib: Library) -> Array:
    a, b = lib.constant(0.2), lib.constant(0.7)
    s = a + b
    terms = lib.exp(a * x + b * y) - (a * lib.exp(s * x) + b * lib.exp(s * y)) / s
    return -terms.sum(-1) / (a * b)


def _renyi(x: Array, y: Array, lib: Library) -> Array:
    return lib.logsumexp(2.0 * x - y)


def _jensen_shannon(x: Array, y: Array, lib: Library) -> Array:
    middle = lib.logaddexp(x, y) - lib.log(lib.constant(2.0))
    return 0.5 * (_kl(x, middle, lib) + _kl(y, middle, lib))


def _hellinger(x: Array, y: Array, lib: Library) -> Array:
    return ((lib.exp(0.5 * x) - lib.exp(0.5 * y)) ** 2).sum(-1)


DIVERGENCES: dict[str, tuple[am.Divergence, Callable[[Array, Array, Library], Array]]] = {
    "KL": (am.KL(), _kl),
    "AB(.2,.7)": (am.AlphaBeta(0.2, 0.7), _alpha_beta),
    "Rényi(2)": (am.Renyi(2.0), _renyi),
    "JS": (am.JensenShannon(), _jensen_shannon),
    "Hellinger²": (am.SquaredHellinger(), _hellinger),
}


@dataclass(frozen=True)
class Case:
    """One loss: a divergence in one order, between the student, the teacher or the assistant.

    Args:
        divergence: a key of :data:`DIVERGENCES`.
        order: "pr", "rp", "qr" or "rq".
        alpha: α of the assistant.
        lam: λ of the assistant; 0 makes it the student.
    """

    divergence: str
    order: str = "pr"
    alpha: float = -1.0
    lam: float = 0.1

    @property
    def title(self) -> str:
        """As a formula: KL(p‖r), α=-1."""
        if self.lam == 0.0:
            return f"{self.divergence}({'‖'.join(self.order.replace('r', 'q'))})"
        return f"{self.divergence}({'‖'.join(self.order)}), α={self.alpha:g}"

    @property
    def loss(self) -> am.AMiD:
        """As amidmath's loss."""
        divergence = DIVERGENCES[self.divergence][0]
        return am.AMiD(divergence, order=self.order, alpha=self.alpha, lam=self.lam)

    def plain(self, student: Array, teacher: Array, lib: Library) -> Array:
        """As the textbook form, the mean over the rows."""
        named = {"p": lib.log_softmax(teacher), "q": lib.log_softmax(student)}
        named["r"] = self._log_assistant(named["p"], named["q"], lib)
        divergence = DIVERGENCES[self.divergence][1]
        return divergence(named[self.order[0]], named[self.order[1]], lib).mean()

    def _log_assistant(self, log_p: Array, log_q: Array, lib: Library) -> Array:
        if self.lam == 0.0:
            return log_q
        lam, k = lib.constant(self.lam), 0.5 * (1.0 - self.alpha)
        if k == 0.0:
            return lib.log_softmax(lam * log_p + (1.0 - lam) * log_q)
        mixed = lib.logaddexp(lib.log(lam) + k * log_p, lib.log(1.0 - lam) + k * log_q) / k
        return mixed if k == 1.0 else lib.log_softmax(mixed)


KL_ALPHAS = (-1.0, 0.0, 1.0, 3.0, -5.0)
ORDERS = ("pr", "rp", "qr", "rq")
PLAIN_KL = Case("KL", lam=0.0)
PLAIN_JS = Case("JS", lam=0.0)
KL_PR, AB_PR = Case("KL"), Case("AB(.2,.7)")
KL_CASES = tuple(Case("KL", order, alpha) for alpha in KL_ALPHAS for order in ORDERS)
OTHER_CASES = tuple(
    Case(name, order, alpha)
    for name in DIVERGENCES
    if name != "KL"
    for order, alpha in (("pr", -1.0), ("rq", -1.0), ("pr", 0.0))
)
JAX_CASES = (
    *(KL_PR, Case("KL", "qr"), Case("KL", "rp", 0.0), Case("KL", "pr", 3.0)),
    *(AB_PR, Case("JS", "pr", 0.0)),
)
