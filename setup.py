"""The packages of the wheel, found in the folders that pyproject.toml's package-dir names."""

from setuptools import find_namespace_packages, setup

CACHES = ["*__pycache__*"]
ROOTS = {
    "amidmath": "amidmath",
    "amidmath.backends": "backends",
    "amidmath.integrations": "integrations",
}

setup(
    packages=[
        package
        for root, folder in ROOTS.items()
        for package in (
            root,
            *(f"{root}.{name}" for name in find_namespace_packages(folder, exclude=CACHES)),
        )
    ],
    package_dir=ROOTS,
)
