"""What runs where: one table of the public functions, the array libraries and their modes.

The tests check its cells and that docs/capabilities.md is what it renders:

    python tests/helpers/capabilities.py > docs/capabilities.md
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import amidmath as am
from amidmath import geometry

MODES = {
    "NumPy": ("eager",),
    "array-api-strict": ("eager",),
    "torch": ("eager", "compile", "grad", "func", "forward"),
    "JAX": ("eager", "jit", "grad", "vmap", "forward"),
    "dask": ("lazy",),
    "CuPy": ("eager",),
}
"""The modes of each library, a column each."""

MEANING = {
    "eager": "called with arrays, values and shapes those of NumPy",
    "compile": '`torch.compile(fullgraph=True, backend="aot_eager")`, value and gradient',
    "grad": "`torch.autograd.grad`, `jax.grad`: the closed form where there is one",
    "func": "`torch.func.vmap` and `torch.func.grad`",
    "forward": "`torch.func.jvp`, `jax.jvp`",
    "jit": "`jax.jit`",
    "vmap": "`jax.vmap`",
    "lazy": "nothing is computed before `.compute()`, then values are those of NumPy",
}

YES, SAME, NO = "✓", "(✓)", "no"
UNTRIED = "?"  # as documentation shows what no GPU has run yet

FACTORIES = {
    "Divergence": "the base class of the divergences",
    "Head": "what makes logits of a `Hidden`",
    "Hidden": "hidden states and their head, an input of losses",
    "Loss": "the base class of the losses",
    "ModeReport": "what `mode_report` returns",
    "Shard": "logits of a part of the vocabulary, an input of losses on several ranks",
    "TopK": "a teacher's lists, an input of losses",
    "divergences": "a module",
    "geometry": "a module, below",
    "top_k": "makes a `TopK` of logits",
}
"""Public names that compute nothing themselves, and what they are."""

Cell = tuple[str, str]
"""A library and one of its modes."""


@dataclass(frozen=True)
class Row:
    """A public function or class, a small call of it, and where that does not work.

    Args:
        name: as documented, without the module.
        call: the call, from two arrays (2, 3, 4) of log-probabilities to one array.
        module: where it is public.
        like: a row that runs the same code but for a formula; it is checked in all modes, this
            one in eager mode and by torch's grad.
        no: cells that do not work, and why.
    """

    name: str
    call: Callable[[Any, Any], Any]
    module: str = "amidmath"
    like: str | None = None
    no: dict[Cell, str] = field(default_factory=dict)

    def mark(self, cell: Cell) -> str:
        """What the table says."""
        if cell in self.no:
            return NO
        by_itself = cell[1] in ("eager", "lazy") or cell == ("torch", "grad")
        if self.like is not None and not by_itself:
            return SAME
        return YES


def _namespace(array: Any) -> Any:
    import array_api_compat

    return array_api_compat.array_namespace(array)


def _stacked(p: Any, q: Any) -> Any:
    return _namespace(p).stack([p, q])


def _knobs(p: Any) -> tuple[Any, Any]:
    """α and λ that depend on the array, so that they are differentiated too."""
    return p[..., 0], _namespace(p).exp(p[..., 1])


def _amid_of_arrays(p: Any, q: Any) -> Any:
    alpha, lam = _knobs(p)
    return am.AMiD(_KL, order="qr", alpha=alpha, lam=lam)(q, p)


def _mean_of_arrays(p: Any, q: Any) -> Any:
    return am.log_falpha_mean(_stacked(p, q), alpha=p, weights=_weights(p))


def _weights(p: Any) -> Any:
    return _stacked(0.25 + 0.0 * p, 0.75 + 0.0 * p)


# Made once: torch.compile cannot make a loss or divergence with a default inside of it.
_KL = am.KL()
_AMID = am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=3.0, lam=0.25)
_SUM = 0.5 * am.AMiD(order="pr") + 0.5 * am.AMiD(order="qr", alpha=3.0)
_AKL = am.methods.akl(mu=0.0)  # whose weights, held in the derivatives, are 0 and 1
_SPREAD = am.AlphaJensenShannon(alpha=0.0, lam=0.25)
_SLOPE = am.derivative(lambda u, xp: u * xp.log(u))
_F = am.FDivergence(lambda u, xp: (u - 1.0) ** 2 / (u + 1.0), smooth=True)
_BREGMAN = am.Bregman(lambda u, xp: u * xp.log(u))
_DUAL = am.Dual(am.Renyi(2.0))
_SYMMETRIZED = am.Symmetrized(am.AlphaBeta(0.2, 0.7))


def _own_rows() -> list[Row]:
    return [
        Row("AMiD", lambda p, q: _AMID(q, p)),
        Row("AMiD with α and λ as arrays", _amid_of_arrays),
        Row("AMiD.value_and_grad", lambda p, q: _AMID.value_and_grad(q, p)[1], no=_no_second()),
        Row("AlphaJensenShannon", lambda p, q: _SPREAD(q, p), like="AMiD"),
        Row("WeightedSum", lambda p, q: _SUM(q, p), like="AMiD"),
        Row("methods.akl", lambda p, q: _AKL(q, p)),
        Row("alpha_mixture", lambda p, q: am.alpha_mixture(p, q, alpha=3.0, lam=0.25)),
        Row(
            "alpha_mixture with α and λ as arrays",
            lambda p, q: am.alpha_mixture(p, q, alpha=_knobs(p)[0], lam=_knobs(p)[1]),
            like="alpha_mixture",
        ),
        Row("log_falpha_mean", lambda p, q: am.log_falpha_mean(_stacked(p, q), alpha=0.5)),
        Row(
            "log_falpha_mean with α and weights as arrays", _mean_of_arrays, like="log_falpha_mean"
        ),
        Row(
            "falpha_mean",
            lambda p, q: am.falpha_mean(_namespace(p).exp(_stacked(p, q)), alpha=0.5),
            like="log_falpha_mean",
        ),
        Row("derivative", lambda p, q: _SLOPE(_namespace(p).exp(p), _namespace(p))),
        Row("divergence", lambda p, q: am.divergence("kl")(p, q), like="KL"),
        Row("FDivergence", lambda p, q: _F(p, q), like="KL"),
        Row("Bregman", lambda p, q: _BREGMAN(p, q), like="KL"),
        Row("Dual", lambda p, q: _DUAL(p, q), like="KL"),
        Row("Symmetrized", lambda p, q: _SYMMETRIZED(p, q), like="KL"),
    ]


def _no_second() -> dict[Cell, str]:
    reason = "it gives the gradient outside of autograd, which takes it for a constant"
    by_torch = {("torch", mode): reason for mode in ("compile", "grad")}
    reason = 'a second derivative, refused with an error that names `backend="reference"`'
    refused = (("torch", "func"), ("torch", "forward"), ("JAX", "grad"), ("JAX", "forward"))
    return by_torch | dict.fromkeys(refused, reason)


def _divergence_rows() -> list[Row]:
    def call(divergence: Any) -> Callable[[Any, Any], Any]:
        return lambda p, q: divergence(p, q)

    whole = ("KL", "AlphaBeta", "Renyi")
    return [
        Row(
            cls.__name__,
            # Concrete scores hold their weights in the derivatives, but for uniform ones.
            call(cls(*cls.examples[-1 if cls is am.ConcreteScore else 0])),
            like=None if cls.__name__ in whole else "KL",
        )
        for cls in sorted(am.divergences.REGISTRY.values(), key=lambda cls: cls.__name__)
    ]


def _geometry_rows() -> list[Row]:
    calls: dict[str, Callable[[Any, Any], Any]] = {
        "amari_chentsov": lambda p, q: geometry.amari_chentsov(p, q, p, q),
        "barycenter": lambda p, q: geometry.barycenter(_stacked(p, q), alpha=0.0),
        "connection": lambda p, q: geometry.connection(p, q, q, alpha=-1.0),
        "fisher_information": lambda p, q: geometry.fisher_information(p),
        "fisher_metric": lambda p, q: geometry.fisher_metric(p, q, q),
        "geodesic": lambda p, q: geometry.geodesic(p, q, 0.25, alpha=3.0),
        "jensen_divergence": lambda p, q: geometry.jensen_divergence(_stacked(p, q), alpha=-1.0),
        "mode_report": lambda p, q: geometry.mode_report(p, q, alpha=0.0, lam=0.25).covering,
        "natural_gradient": lambda p, q: geometry.natural_gradient(p, q, damping=0.125),
        "overlap": lambda p, q: geometry.overlap(p, q),
    }
    return [Row(name, call, "amidmath.geometry") for name, call in calls.items()]


ROWS = (*_own_rows(), *_divergence_rows(), *_geometry_rows())
CELLS = tuple((library, mode) for library, modes in MODES.items() for mode in modes)


def example() -> tuple[np.ndarray, np.ndarray]:
    """Two arrays (2, 3, 4) of log-probabilities."""
    logits = np.random.default_rng(7).normal(size=(2, 2, 3, 4))
    p, q = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return p, q


def render() -> str:
    """docs/capabilities.md."""
    lines = [
        "# What runs where",
        "",
        "Made by `python tests/helpers/capabilities.py > docs/capabilities.md`; the tests check",
        "its cells (`make test ARGS=tests/amidmath/across/test_capabilities.py`).",
        f"{YES}: checked. {SAME}: "
        "the code of a row that is checked in this mode, with another formula. Numbers: see below.",
        "",
    ]
    lines += [f"- **{mode}**: {meaning}." for mode, meaning in MEANING.items()]
    notes: dict[str, int] = {}
    for module in ("amidmath", "amidmath.geometry"):
        lines += ["", f"## {module}", ""]
        header = [
            f"{library} {mode}" if len(MODES[library]) > 1 else library for library, mode in CELLS
        ]
        lines += ["| | " + " | ".join(header) + " |", "|---" * (len(CELLS) + 1) + "|"]
        for row in ROWS:
            if row.module != module:
                continue
            marks = []
            for cell in CELLS:
                mark = row.mark(cell)
                if mark == NO:
                    number = notes.setdefault(row.no[cell], len(notes) + 1)
                    mark = f"no [{number}]"
                elif cell[0] == "CuPy":
                    mark = UNTRIED
                marks.append(mark)
            lines.append(f"| {row.name} | " + " | ".join(marks) + " |")
    lines += ["", "## Notes", ""]
    lines += [f"{number}. {text[0].upper()}{text[1:]}." for text, number in notes.items()]
    lines += ["", *(f"- {text}" for text in GENERAL), ""]
    return "\n".join(lines)


GENERAL = (
    "NumPy, array-api-strict, dask and CuPy do not differentiate: `value_and_grad` of losses and "
    "divergences gives gradients there, from the same closed forms.",
    "dask arrays need chunks of known size (`compute_chunk_sizes()`), and an empty one cannot be "
    "computed: its own maximum refuses. Values are not checked, as that would compute them.",
    "`amidmath.methods` makes losses of the classes above; `akl` alone has one of its own.",
    "Losses of `Hidden` states, of a teacher's `TopK`, and with labels: values and "
    "`value_and_grad` on NumPy and array-api-strict; on torch also grad, func.grad and compile, on "
    "JAX all of its transformations (tests/amidmath/pairs, tests/backends/test_jax*.py). "
    "Not on dask.",
    "Losses of a `Shard`: on torch and JAX, on one and on several ranks (tests/amidmath/pairs, "
    "tests/backends).",
    f"CuPy: {UNTRIED} is what the tests run where there is a GPU; none has run them yet.",
    "Not in the tables: "
    + ", ".join(f"`{name}` ({what})" for name, what in FACTORIES.items())
    + ".",
)


if __name__ == "__main__":
    print(render(), end="")
