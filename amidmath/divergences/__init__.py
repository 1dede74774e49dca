"""Divergences between distributions, one family a file."""

from amidmath.divergences._alpha_beta import AlphaBeta as AlphaBeta
from amidmath.divergences._base import Divergence as Divergence
from amidmath.divergences._kl import KL as KL
from amidmath.divergences._kl import ReverseKL as ReverseKL
