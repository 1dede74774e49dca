"""Distillation methods by their names, each a loss with its parameters as its paper has them.

    >>> import amidmath as am
    >>> loss = am.methods.distillm("srkl", skew=0.1)

Every function gives an :class:`amidmath.Loss` per token, in nats, at a temperature that divides
both logits (:func:`distillm2` gives one for each source of rows). They say which distribution their
parameters weigh, as papers differ: λ here always weighs the teacher. ``METHODS`` has them by name,
as :class:`Method` objects, with their parameters and the conventions in words. The formulas are in
docs: methods. A file put here is found by itself.
"""

import importlib
import pkgutil
from typing import Any

from amidmath.methods.curriculum import distillm2_beta as distillm2_beta
from amidmath.methods.curriculum import distillm2_skew as distillm2_skew
from amidmath.methods.direct import abkd as abkd
from amidmath.methods.direct import akl as akl
from amidmath.methods.direct import csd as csd
from amidmath.methods.direct import jeffreys as jeffreys
from amidmath.methods.direct import kl as kl
from amidmath.methods.direct import minillm as minillm
from amidmath.methods.direct import reverse_kl as reverse_kl
from amidmath.methods.direct import tvd as tvd
from amidmath.methods.direct import wsd as wsd
from amidmath.methods.method import METHODS as METHODS
from amidmath.methods.method import Method as Method
from amidmath.methods.mixtures import amid as amid
from amidmath.methods.mixtures import distillm as distillm
from amidmath.methods.mixtures import distillm2 as distillm2
from amidmath.methods.mixtures import gkd as gkd
from amidmath.methods.mixtures import taid as taid

# METHODS aside, which is no function or class of its own.
__all__ = [
    "Method",
    "abkd",
    "akl",
    "amid",
    "csd",
    "distillm",
    "distillm2",
    "distillm2_beta",
    "distillm2_skew",
    "gkd",
    "jeffreys",
    "kl",
    "minillm",
    "reverse_kl",
    "taid",
    "tvd",
    "wsd",
]


def find() -> None:
    """Import every file of this package, so that the methods in it are in ``METHODS``."""
    for module in pkgutil.iter_modules(__path__, __name__ + "."):
        importlib.import_module(module.name)


find()


def __getattr__(attribute: str) -> Any:
    """A method that has its file but no line above."""
    if attribute in METHODS:
        return METHODS[attribute].function
    raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
