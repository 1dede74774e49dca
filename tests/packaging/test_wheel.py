"""The wheel and the sdist hold the package, and the wheel works away from the checkout."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both archives, the wheel built from the sdist as an installer would."""
    folder = tmp_path_factory.mktemp("dist")
    options = ["--quiet", "--no-isolation", "--outdir", str(folder)]
    command = [sys.executable, "-m", "build", *options, str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def test_wheel_contents(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "amidmath/__init__.py",
        "amidmath/py.typed",
        "amidmath/divergences/kl.py",
        "amidmath/backends/torch_backend/adapter.py",
        "amidmath/backends/torch_backend/operators.py",
        "amidmath/integrations/torch_distill.py",
        "amidmath/integrations/configs/smollm2.yaml",
    } <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"amidmath"}


def test_sdist_contents(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "backends/jax_backend/adapter.py"} <= names
    assert {"Makefile", "CHANGELOG.md", "CITATION.cff", "docs/design.md"} <= names
    assert "tests/packaging/test_wheel.py" in names


def test_wheel_outside_the_checkout(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel],
        check=True,
    )
    program = (
        "import numpy as np, amidmath as am\n"
        "import amidmath.backends.torch_backend.closed_forms, amidmath.integrations.torch_distill\n"
        f"assert am.__file__.startswith({str(site)!r}), am.__file__\n"
        "value, grad = am.AMiD().value_and_grad(np.zeros((2, 3)), np.eye(2, 3))\n"
        "assert value > 0 and grad.shape == (2, 3)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(site)}, check=True
    )
