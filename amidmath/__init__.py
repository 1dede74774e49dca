"""Mathematics of knowledge distillation with the α-mixture assistant distribution.

    >>> import amidmath as am
    >>> loss = am.AMiD(divergence=am.KL(), order="pr", alpha=-1.0, lam=0.1)

Means: :func:`falpha_mean`, :func:`log_falpha_mean`, :func:`alpha_mixture`. Divergences:
:class:`KL` and its many relatives, each a class and a name for :func:`divergence`. Losses:
:class:`AMiD`, :class:`AlphaJensenShannon`, their sums and multiples; by the names of published
methods in :mod:`amidmath.methods`. A loss takes logits, or :class:`Hidden` states with
their :class:`Head`, or a :class:`Shard` of a vocabulary over ranks; of a teacher also its
:class:`TopK` tokens. Geometry: :mod:`amidmath.geometry`. They take arrays of any
library that follows the Array API standard and import no framework that the caller did not.
"""

from typing import Any

from amidmath import backends as backends
from amidmath import divergences as divergences
from amidmath import geometry as geometry
from amidmath import methods as methods
from amidmath.divergences import KL as KL
from amidmath.divergences import AlphaBeta as AlphaBeta
from amidmath.divergences import AmariAlpha as AmariAlpha
from amidmath.divergences import ArithmeticGeometric as ArithmeticGeometric
from amidmath.divergences import Beta as Beta
from amidmath.divergences import Bhattacharyya as Bhattacharyya
from amidmath.divergences import Bregman as Bregman
from amidmath.divergences import Chernoff as Chernoff
from amidmath.divergences import ConcreteScore as ConcreteScore
from amidmath.divergences import CressieRead as CressieRead
from amidmath.divergences import Divergence as Divergence
from amidmath.divergences import Dual as Dual
from amidmath.divergences import FDivergence as FDivergence
from amidmath.divergences import FisherRao as FisherRao
from amidmath.divergences import Gamma as Gamma
from amidmath.divergences import GeneralizedKL as GeneralizedKL
from amidmath.divergences import Jeffreys as Jeffreys
from amidmath.divergences import JensenShannon as JensenShannon
from amidmath.divergences import NeymanChi2 as NeymanChi2
from amidmath.divergences import PearsonChi2 as PearsonChi2
from amidmath.divergences import Renyi as Renyi
from amidmath.divergences import ReverseKL as ReverseKL
from amidmath.divergences import SkewJensenShannon as SkewJensenShannon
from amidmath.divergences import SkewKL as SkewKL
from amidmath.divergences import SkewReverseKL as SkewReverseKL
from amidmath.divergences import SquaredHellinger as SquaredHellinger
from amidmath.divergences import Symmetrized as Symmetrized
from amidmath.divergences import TotalVariation as TotalVariation
from amidmath.divergences import TPower as TPower
from amidmath.divergences import Triangular as Triangular
from amidmath.divergences import Tsallis as Tsallis
from amidmath.divergences import divergence as divergence
from amidmath.formulas.dual import derivative as derivative
from amidmath.inputs.head import Head as Head
from amidmath.inputs.hidden import Hidden as Hidden
from amidmath.inputs.shard import Shard as Shard
from amidmath.inputs.top_k import TopK as TopK
from amidmath.inputs.top_k import top_k as top_k
from amidmath.losses.alpha_jensen_shannon import AlphaJensenShannon as AlphaJensenShannon
from amidmath.losses.amid import AMiD as AMiD
from amidmath.losses.loss import Loss as Loss
from amidmath.losses.loss import WeightedSum as WeightedSum
from amidmath.means import alpha_mixture as alpha_mixture
from amidmath.means import falpha_mean as falpha_mean
from amidmath.means import log_falpha_mean as log_falpha_mean

__version__ = "0.2.0"
__all__ = [
    "KL",
    "AMiD",
    "AlphaBeta",
    "AlphaJensenShannon",
    "AmariAlpha",
    "ArithmeticGeometric",
    "Beta",
    "Bhattacharyya",
    "Bregman",
    "Chernoff",
    "ConcreteScore",
    "CressieRead",
    "Divergence",
    "Dual",
    "FDivergence",
    "FisherRao",
    "Gamma",
    "GeneralizedKL",
    "Head",
    "Hidden",
    "Jeffreys",
    "JensenShannon",
    "Loss",
    "NeymanChi2",
    "PearsonChi2",
    "Renyi",
    "ReverseKL",
    "Shard",
    "SkewJensenShannon",
    "SkewKL",
    "SkewReverseKL",
    "SquaredHellinger",
    "Symmetrized",
    "TPower",
    "TopK",
    "TotalVariation",
    "Triangular",
    "Tsallis",
    "WeightedSum",
    "alpha_mixture",
    "derivative",
    "divergence",
    "divergences",
    "falpha_mean",
    "geometry",
    "log_falpha_mean",
    "methods",
    "top_k",
]


def __getattr__(attribute: str) -> Any:
    """A divergence that has its file and its name but no line above."""
    return getattr(divergences, attribute)
