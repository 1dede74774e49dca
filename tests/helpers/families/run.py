"""One family through both loops."""

from __future__ import annotations

import importlib
import logging
import warnings
from dataclasses import dataclass, field

import transformers
from families.ways import WAYS, Outcome, outcomes

SCRIPTS = {"torch": "torch_distill", "jax": "jax_distill"}
# The JAX loop has neither sequences without padding nor a linear layer to adapt but by name.
WAYS_OF = {"torch": list(WAYS), "jax": [way for way in WAYS if way != "padding-free"]}


@dataclass
class Family:
    """What came of a family.

    Attributes:
        found: by script, what came of every way.
        unavailable: why there is no model of it here; empty where there is one.
    """

    found: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    unavailable: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether a loss is wrong, or a run ended in a traceback."""
        every = (outcome for of in self.found.values() for outcome in of.values())
        return any(outcome.verdict in ("wrong", "failed") for outcome in every)


def run(model_type: str, scripts: tuple[str, ...]) -> tuple[str, Family]:
    """Take a family through the scripts that know it; gives its name too."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.set_verbosity_error()
    family = Family()
    for name in scripts:
        if name == "jax" and not _in_jax(model_type):
            continue
        script = importlib.import_module(f"amidmath.integrations.{SCRIPTS[name]}").main
        try:
            family.found[name] = outcomes(model_type, script, WAYS_OF[name])
        except Exception as error:  # of the family's own code, whichever it may be
            said = str(error).strip().splitlines() or [""]
            family.unavailable = f"{type(error).__name__}: {said[0]}"
            break
    return model_type, family


def _in_jax(model_type: str) -> bool:
    from amidmath.integrations.jax_loop.models.families import FAMILIES

    return model_type in FAMILIES
