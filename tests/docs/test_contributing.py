"""The divergence and the operation that CONTRIBUTING adds, by what it says and nothing else."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np
import pytest

import amidmath as am
from amidmath.backends.cuda_kernels import source as cuda
from amidmath.backends.triton_kernels import source as triton
from amidmath.compiler.graph import UnsupportedError
from amidmath.rows.forms import RowForm

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The file of the example, found as the package finds its own."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) < 50
    (tmp_path / "_symmetric_chi2.py").write_text(example, "utf-8")
    monkeypatch.setattr(am.divergences, "__path__", [str(tmp_path)])
    am.divergences.find()
    yield "symmetric_chi2"
    del am.divergences.REGISTRY["symmetric_chi2"]


def test_one_file_adds_a_divergence(added: str) -> None:
    divergence = am.divergence(added)
    assert type(divergence) is am.SymmetricChi2  # pyright: ignore[reportAttributeAccessIssue]
    x, y = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    value, (by_x, by_y) = divergence.value_and_grad(np.log(x), np.log(y))
    wanted = divergence.definition(x, y, (), mpmath)
    assert float(value) == pytest.approx(float(wanted), rel=1e-14)
    # Both sides scaled by t scale the sum by t: Euler's identity.
    assert by_x.sum() + by_y.sum() == pytest.approx(float(wanted), rel=1e-13)
    loss, grad = am.AMiD(divergence, "qr", 3.0).value_and_grad(np.log(y), np.log(x))
    step = 1e-6 * np.eye(3)[0]
    sides = [am.AMiD(divergence, "qr", 3.0)(np.log(y) + s, np.log(x)) for s in (step, -step)]
    assert loss > 0.0
    assert grad[0] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6)


LINE = re.compile(r"^\| `(amidmath|backends)/(\S+)\.py` \| `(.*),` \|$", re.MULTILINE)


def squares(u: Any, xp: Any) -> Any:
    """A generator of a divergence: (u - 1)², by the operation that is added."""
    return xp.square(u - 1.0)


def test_the_lines_of_the_table_add_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llvmlite")
    from amidmath.compiler import operations, program

    loss = am.AMiD(am.FDivergence(squares, smooth=True), order="rp", alpha=0.5)
    form = RowForm(loss.block)
    program.row_program.cache_clear()
    with pytest.raises(UnsupportedError, match="square"):
        program.row_program(form, (True, False), False)
    lines = LINE.findall((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    assert len(lines) == 4
    for root, file, line in lines:
        folder = "amidmath" if root == "amidmath" else "amidmath.backends"
        module = importlib.import_module(f"{folder}.{file.replace('/', '.')}")
        named = f'"square": {line}' if root == "amidmath" else line
        (added,) = eval(f"{{{named}}}", vars(module)).items()
        monkeypatch.setitem(module.OPERATIONS, *added)
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, 40))
    value, grad = loss.value_and_grad(student, teacher, backend="compiled")
    wanted, wanted_grad = loss.value_and_grad(student, teacher, backend="reference")
    assert value == pytest.approx(wanted, rel=1e-12)
    np.testing.assert_allclose(grad, wanted_grad, rtol=0, atol=1e-12)
    written = program.row_program(form, (True, False), False)
    assert cuda.source(written, dtypes=2 * ("float32",), masked=False, double=False).text
    assert triton.source(written, masked=False, double=False, split=False).text
    assert operations.OPERATIONS["square"].cost == 1
