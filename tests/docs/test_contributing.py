"""The divergence that CONTRIBUTING adds: its file alone is enough."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import mpmath
import numpy as np
import pytest

import amidmath as am

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
