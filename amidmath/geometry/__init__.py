"""Information geometry of the probability simplex for the α-mixture family.

    >>> from amidmath import geometry

Points are log-probabilities; tangent vectors are changes of the logits (the natural coordinates
of the simplex), so that constants are zero vectors. Between points: :func:`barycenter`,
:func:`jensen_divergence`, :func:`geodesic`, :func:`overlap`, :func:`mode_report`. At a point:
:func:`fisher_metric`, :func:`fisher_information`, :func:`natural_gradient`,
:func:`amari_chentsov`, :func:`connection`. The equations are in docs: geometry.
"""

from amidmath.geometry.barycenters import barycenter as barycenter
from amidmath.geometry.barycenters import jensen_divergence as jensen_divergence
from amidmath.geometry.connections import amari_chentsov as amari_chentsov
from amidmath.geometry.connections import connection as connection
from amidmath.geometry.geodesics import geodesic as geodesic
from amidmath.geometry.metrics import fisher_information as fisher_information
from amidmath.geometry.metrics import fisher_metric as fisher_metric
from amidmath.geometry.modes import ModeReport as ModeReport
from amidmath.geometry.modes import mode_report as mode_report
from amidmath.geometry.modes import overlap as overlap
from amidmath.geometry.natural import natural_gradient as natural_gradient

__all__ = [
    "ModeReport",
    "amari_chentsov",
    "barycenter",
    "connection",
    "fisher_information",
    "fisher_metric",
    "geodesic",
    "jensen_divergence",
    "mode_report",
    "natural_gradient",
    "overlap",
]
