"""Backends: an adapter for each array library, and the compilers of row programs.

An adapter is imported with the first array of its library.
"""

from amidmath.arrays.adapters import Adapter, register


def _numpy() -> Adapter:
    from amidmath.backends.numpy_backend.adapter import NumpyAdapter

    return NumpyAdapter()


def _torch() -> Adapter:
    from amidmath.backends.torch_backend.adapter import TorchAdapter

    return TorchAdapter()


def _jax() -> Adapter:
    from amidmath.backends.jax_backend.adapter import JaxAdapter

    return JaxAdapter()


def _cupy() -> Adapter:
    from amidmath.backends.cupy_backend.adapter import CupyAdapter

    return CupyAdapter()


def _dask() -> Adapter:
    from amidmath.backends.array_backend.adapter import LazyAdapter

    return LazyAdapter()


def _other() -> Adapter:
    from amidmath.backends.array_backend.adapter import ArrayAdapter

    return ArrayAdapter()


register("numpy", _numpy)
register("torch", _torch)
register("jax", _jax)
register("cupy", _cupy)
register("dask", _dask)
register("other", _other)
