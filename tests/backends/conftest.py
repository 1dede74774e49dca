"""What the tests of compiled rows share."""

from __future__ import annotations

import pytest

from amidmath.backends import cpu


@pytest.fixture
def calls(monkeypatch):
    """How often the CPU's kernel has run."""
    made = []
    original = cpu.run

    def run(*args, **kwargs):
        made.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(cpu, "run", run)
    return made
