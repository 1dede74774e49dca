"""What importing amidmath does and gives, and that what its docstrings show is so."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import amidmath as am

CORE = [
    module
    for module in ("amidmath", *(m.name for m in pkgutil.walk_packages(am.__path__, "amidmath.")))
    if not module.startswith(("amidmath.backends", "amidmath.integrations"))
]


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names():
    assert am.__all__ == [
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
    rooms = {n for n, found in vars(am).items() if isinstance(found, ModuleType)}
    public = {n for n in vars(am) if not n.startswith("_")} - rooms - {"Any"}
    assert public == set(am.__all__) - {"divergences", "geometry", "methods"}


def test_importing_amidmath_imports_no_framework():
    code = "import sys, amidmath; print(*{m.split('.')[0] for m in sys.modules})"
    imported = set(run(code).split())
    assert not imported & {"numpy", "torch", "jax", "jaxlib", "cupy", "numba", "triton", "scipy"}
    assert not imported & {"backends", "integrations"}


@pytest.mark.parametrize("framework", ["numpy", "torch", "jax"])
def test_using_one_framework_imports_no_other(framework):
    code = f"""
import sys
import amidmath as am
if "{framework}" == "torch":
    import torch
    x = torch.zeros(2, 3, requires_grad=True)
elif "{framework}" == "jax":
    import jax.numpy as jnp
    x = jnp.zeros((2, 3))
else:
    import numpy as np
    x = np.zeros((2, 3))
before = set(sys.modules)
am.AMiD()(x, x)
am.AMiD().value_and_grad(x, x)
am.alpha_mixture(x, x, alpha=1.0, lam=0.5)
print(*({{m.split(".")[0] for m in set(sys.modules) - before}}))
print("backends" in sys.modules)
"""
    imported, plain = run(code).rsplit("\n", 2)[0:2]
    others = {"torch", "jax", "cupy", "numba", "triton"} - {framework}
    assert not set(imported.split()) & others
    assert plain == "False"


@pytest.mark.parametrize("module", CORE)
def test_docstring_examples(module):
    failed, _ = doctest.testmod(importlib.import_module(module))
    assert failed == 0


def test_every_public_name_shows_an_example():
    for name in set(am.__all__) - {"Divergence", "Loss", "divergences", "geometry"}:
        assert ">>> " in getattr(am, name).__doc__, name
