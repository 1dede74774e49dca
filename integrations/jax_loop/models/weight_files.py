"""Safetensors files of a model, read and written tensor by tensor."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from amidmath.integrations.common.errors import InputError, first_paragraph
from amidmath.integrations.jax_loop.devices.processes import on_host
from amidmath.integrations.jax_loop.models.families import Tensor
from amidmath.integrations.jax_loop.models.layers import Axes

WEIGHTS = "model.safetensors"

INDEX = "model.safetensors.index.json"

_DTYPES = ("F64", "F32", "F16", "BF16")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"it has no {path.name}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"its {path.name} is no JSON: {first_paragraph(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"its {path.name} must hold an object, not a {type(content).__name__}")
    return content


@dataclass(frozen=True)
class Stored:
    """A tensor in an open safetensors file."""

    file: Any
    name: str

    def tensor(self, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Its value; raises InputError unless it has this shape and a dtype that is known."""
        found = self.file.get_slice(self.name)
        dtype, got = found.get_dtype(), tuple(found.get_shape())
        if dtype not in _DTYPES:
            raise InputError(
                f"its weight {self.name} is of type {dtype}; supported are {', '.join(_DTYPES)}"
            )
        if shape is not None and got != shape:
            raise InputError(
                f"its weight {self.name} has shape {got}; by its configuration it would be {shape}"
            )
        return cast("NDArray[Any]", self.file.get_tensor(self.name))


def open_files(folder: Path, prefix: str, stack: ExitStack) -> dict[str, Stored]:
    """All tensors of a folder, by the names that transformers gives them."""
    if (folder / INDEX).is_file():
        places = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    elif (folder / WEIGHTS).is_file():
        places = [WEIGHTS]
    else:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        raise InputError(f"it has no {WEIGHTS} and no {INDEX}{hint}")
    found = {}
    for place in places:
        file = stack.enter_context(safe_open(folder / place, framework="numpy"))
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            whole = name.startswith((prefix, "lm_head."))
            found[name if whole else prefix + name] = Stored(file, name)
    return found


@dataclass(frozen=True)
class Parts:
    """The parameters of one tensor.

    Args:
        shapes: of each, in one layer.
        axes: of the first, in one layer.
        dtype: of all.
        layers: how many layers, if there is a tensor of each.
    """

    shapes: tuple[tuple[int, ...], ...]
    axes: Axes
    dtype: np.dtype[Any]
    layers: int | None

    @classmethod
    def of(cls, tensor: Tensor, parameters: Mapping[str, Any]) -> "Parts":
        """Those of a tensor, among all parameters by their paths."""
        found = [parameters[path] for path in tensor.paths]
        first = 1 if tensor.per_layer else 0
        return cls(
            tuple(tuple(part.shape[first:]) for part in found),
            found[0].axes[first:],
            np.dtype(found[0].dtype),
            found[0].shape[0] if tensor.per_layer else None,
        )

    def names(self, tensor: Tensor) -> list[str]:
        """The tensor's name, or its names in all layers."""
        if self.layers is None:
            return [tensor.name]
        return [tensor.name.format(layer) for layer in range(self.layers)]


def written(tensor: Tensor, parameters: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Names and values of a tensor, or of one in each layer."""
    parts = Parts.of(tensor, parameters)
    values = [on_host(parameters[path][...]) for path in tensor.paths]
    for number, name in enumerate(parts.names(tensor)):
        pieces = [value[number] for value in values] if tensor.per_layer else values
        yield name, tensor.join(pieces, parts.axes)
