"""Mathematics of knowledge distillation with the α-mixture assistant distribution.

    >>> import amidmath as am
    >>> loss = am.AMiD(divergence=am.KL(), order="pr", alpha=-1.0, lam=0.1)

Means: :func:`log_falpha_mean`, :func:`alpha_mixture`. Divergences: :class:`KL`,
:class:`ReverseKL`, :class:`AlphaBeta`. The loss: :class:`AMiD`. They take arrays of any library
that follows the Array API standard and import no framework that the caller did not.
"""

from amidmath._amid import AMiD as AMiD
from amidmath._means import alpha_mixture as alpha_mixture
from amidmath._means import log_falpha_mean as log_falpha_mean
from amidmath.divergences import KL as KL
from amidmath.divergences import AlphaBeta as AlphaBeta
from amidmath.divergences import Divergence as Divergence
from amidmath.divergences import ReverseKL as ReverseKL

__version__ = "0.1.0"
__all__ = [
    "KL",
    "AMiD",
    "AlphaBeta",
    "Divergence",
    "ReverseKL",
    "alpha_mixture",
    "log_falpha_mean",
]
