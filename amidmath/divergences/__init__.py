"""Divergences between distributions, one idea a file; a file put here is found by itself."""

import importlib
import pkgutil

from amidmath.divergences._alpha_beta import AlphaBeta as AlphaBeta
from amidmath.divergences._alpha_beta import Beta as Beta
from amidmath.divergences._arithmetic_geometric import ArithmeticGeometric as ArithmeticGeometric
from amidmath.divergences._base import REGISTRY as REGISTRY
from amidmath.divergences._base import Divergence as Divergence
from amidmath.divergences._base import Separable as Separable
from amidmath.divergences._base import divergence as divergence
from amidmath.divergences._bregman import Bregman as Bregman
from amidmath.divergences._chi_square import NeymanChi2 as NeymanChi2
from amidmath.divergences._chi_square import PearsonChi2 as PearsonChi2
from amidmath.divergences._compose import Dual as Dual
from amidmath.divergences._compose import Symmetrized as Symmetrized
from amidmath.divergences._concrete_score import ConcreteScore as ConcreteScore
from amidmath.divergences._f_divergence import FDivergence as FDivergence
from amidmath.divergences._gamma import Gamma as Gamma
from amidmath.divergences._hellinger import FisherRao as FisherRao
from amidmath.divergences._hellinger import SquaredHellinger as SquaredHellinger
from amidmath.divergences._jeffreys import Jeffreys as Jeffreys
from amidmath.divergences._jensen_shannon import JensenShannon as JensenShannon
from amidmath.divergences._kl import KL as KL
from amidmath.divergences._kl import GeneralizedKL as GeneralizedKL
from amidmath.divergences._kl import ReverseKL as ReverseKL
from amidmath.divergences._power import AmariAlpha as AmariAlpha
from amidmath.divergences._power import CressieRead as CressieRead
from amidmath.divergences._power import TPower as TPower
from amidmath.divergences._power import Tsallis as Tsallis
from amidmath.divergences._renyi import Bhattacharyya as Bhattacharyya
from amidmath.divergences._renyi import Chernoff as Chernoff
from amidmath.divergences._renyi import Renyi as Renyi
from amidmath.divergences._skew_kl import SkewJensenShannon as SkewJensenShannon
from amidmath.divergences._skew_kl import SkewKL as SkewKL
from amidmath.divergences._skew_kl import SkewReverseKL as SkewReverseKL
from amidmath.divergences._total_variation import TotalVariation as TotalVariation
from amidmath.divergences._triangular import Triangular as Triangular


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
