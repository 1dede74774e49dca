"""Divergences between distributions, one idea a file; a file put here is found by itself."""

import importlib
import pkgutil

from amidmath.divergences.alpha_beta import AlphaBeta as AlphaBeta
from amidmath.divergences.alpha_beta import Beta as Beta
from amidmath.divergences.arithmetic_geometric import ArithmeticGeometric as ArithmeticGeometric
from amidmath.divergences.base import REGISTRY as REGISTRY
from amidmath.divergences.base import Divergence as Divergence
from amidmath.divergences.base import Separable as Separable
from amidmath.divergences.base import divergence as divergence
from amidmath.divergences.bregman import Bregman as Bregman
from amidmath.divergences.chi_square import NeymanChi2 as NeymanChi2
from amidmath.divergences.chi_square import PearsonChi2 as PearsonChi2
from amidmath.divergences.compose import Dual as Dual
from amidmath.divergences.compose import Symmetrized as Symmetrized
from amidmath.divergences.concrete_score import ConcreteScore as ConcreteScore
from amidmath.divergences.f_divergence import FDivergence as FDivergence
from amidmath.divergences.gamma import Gamma as Gamma
from amidmath.divergences.hellinger import FisherRao as FisherRao
from amidmath.divergences.hellinger import SquaredHellinger as SquaredHellinger
from amidmath.divergences.jeffreys import Jeffreys as Jeffreys
from amidmath.divergences.jensen_shannon import JensenShannon as JensenShannon
from amidmath.divergences.kl import KL as KL
from amidmath.divergences.kl import GeneralizedKL as GeneralizedKL
from amidmath.divergences.kl import ReverseKL as ReverseKL
from amidmath.divergences.power import AmariAlpha as AmariAlpha
from amidmath.divergences.power import CressieRead as CressieRead
from amidmath.divergences.power import TPower as TPower
from amidmath.divergences.power import Tsallis as Tsallis
from amidmath.divergences.renyi import Bhattacharyya as Bhattacharyya
from amidmath.divergences.renyi import Chernoff as Chernoff
from amidmath.divergences.renyi import Renyi as Renyi
from amidmath.divergences.skew_kl import SkewJensenShannon as SkewJensenShannon
from amidmath.divergences.skew_kl import SkewKL as SkewKL
from amidmath.divergences.skew_kl import SkewReverseKL as SkewReverseKL
from amidmath.divergences.total_variation import TotalVariation as TotalVariation
from amidmath.divergences.triangular import Triangular as Triangular


def find() -> None:
    """Import every file of this package, so that the divergences in it are in the registry."""
    for module in pkgutil.iter_modules(__path__, __name__ + "."):
        importlib.import_module(module.name)


find()


def __getattr__(attribute: str) -> type[Divergence]:
    """A registered class by its own name, where no line above exports it."""
    for cls in REGISTRY.values():
        if cls.__name__ == attribute:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
