"""Which library an array belongs to: array_api_compat's questions, of torch by its class alone.

``torch.compile`` warns of each of array_api_compat's caches that it meets.
"""

import sys
from typing import Any

import array_api_compat

from amidmath.arrays.annotations import Array, Namespace


def is_torch_array(value: Any) -> bool:
    """Whether it is a tensor of torch's."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def is_array(value: Any) -> bool:
    """Whether it is an array of any library."""
    if value is None or isinstance(value, (str, tuple)):
        return False
    return is_torch_array(value) or array_api_compat.is_array_api_obj(value)


def name_of(array: Array) -> str:
    """The library's name, "other" for one that has no adapter of its own."""
    if is_torch_array(array):
        return "torch"
    if array_api_compat.is_jax_array(array):
        return "jax"
    if array_api_compat.is_numpy_array(array):
        return "numpy"
    if array_api_compat.is_cupy_array(array):
        return "cupy"
    return "dask" if array_api_compat.is_dask_array(array) else "other"


def array_namespace(array: Array) -> Namespace:
    """The functions of its library under their Array API names."""
    if is_torch_array(array):
        import array_api_compat.torch as xp

        return xp
    return array_api_compat.array_namespace(array, use_compat=None)


def device(array: Array) -> Any:
    """The device that it is on."""
    return array.device if is_torch_array(array) else array_api_compat.device(array)
