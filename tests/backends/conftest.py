"""What the tests of compiled rows share."""

from __future__ import annotations

import pytest

from amidmath.backends.llvm_kernels import kernels as llvm_kernels


@pytest.fixture
def calls(monkeypatch):
    """How often the CPU's kernel has run."""
    made = []
    original = llvm_kernels.run

    def run(*args, **kwargs):
        made.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(llvm_kernels, "run", run)
    return made
