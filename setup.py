"""The packages of the wheel: every folder under the three roots, wherever they lie."""

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
