"""Losses as pytrees: transformations of JAX and torch see their array parameters as leaves.

A loss is taken apart into its arrays and a template, which has a slot in place of each; what goes
into the slots again is not checked, since tracers, specifications and placeholders go there.
amidmath imports no framework, so the classes are made known to one when a loss is made after it
has been imported, and to JAX at the latest when its arrays first come to amidmath.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from amidmath.arrays import checks

_TEMPLATE = "_template"
"""Where a loss made of a template keeps it, since what fills the slots need not be an array."""

_known: set[type] = set()
_registered: dict[str, set[type]] = {"jax": set(), "torch": set()}


class Slot(Enum):
    """A place for an array."""

    ARRAY = "array"


@dataclass(frozen=True)
class Template:
    """A loss without its arrays.

    Args:
        cls: its class.
        parameters: in the order of its fields; slots in place of arrays, templates of losses.
    """

    cls: type
    parameters: tuple[Any, ...]


def register(cls: type) -> None:
    """Let the frameworks that have been imported take apart losses of a class."""
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "compiler") and torch.compiler.is_compiling():
        return  # what a compiled function makes does not leave it
    _known.add(cls)
    for name, registered in _registered.items():
        if cls not in registered and name in sys.modules:
            register_known(name)


def register_known(name: str) -> None:
    """Let a framework take apart losses of all classes that there have been any of."""
    part, register_class = _FRAMEWORKS[name]
    if not hasattr(sys.modules[name], part):
        return  # it is being imported
    for cls in _known - _registered[name]:
        _registered[name].add(cls)
        try:
            if is_dataclass(cls):
                register_class(sys.modules[name], cls)
        except ValueError:  # who wrote the class has registered it
            continue


def _register_jax(jax: Any, cls: type) -> None:
    jax.tree_util.register_pytree_with_keys(cls, _split_with_keys, joined, split)


def _register_torch(torch: Any, cls: type) -> None:
    def from_leaves(leaves: Iterable[Any], template: Template) -> Any:
        return joined(template, leaves)

    torch.utils._pytree.register_pytree_node(cls, split, from_leaves)


_FRAMEWORKS: dict[str, tuple[str, Callable[[Any, type], None]]] = {
    "jax": ("tree_util", _register_jax),
    "torch": ("utils", _register_torch),
}
"""By name, what of the module is needed, and what registers a class."""


def parameters(value: Any) -> tuple[Any, ...]:
    """The fields of a dataclass, in order."""
    return tuple(getattr(value, field.name) for field in fields(value))


def has_arrays(parameters: tuple[Any, ...]) -> bool:
    """Whether there is an array in parameters, or in those of losses among them."""
    return any(True for _ in _leaves(parameters, _template(parameters)))


def split(loss: Any) -> tuple[list[Any], Template]:
    """The arrays of a loss, and the rest of it."""
    template = vars(loss).get(_TEMPLATE) or _template(loss)
    return list(_leaves(loss, template)), template


def joined(template: Template, leaves: Iterable[Any]) -> Any:
    """The loss of a template, with leaves in its slots, unchecked."""
    return _joined(template, iter(leaves))


def _split_with_keys(loss: Any) -> tuple[list[tuple[Any, Any]], Template]:
    key = sys.modules["jax"].tree_util.GetAttrKey
    leaves, template = split(loss)
    names = _names(template, "")
    return [(key(name), leaf) for name, leaf in zip(names, leaves, strict=True)], template


def _template(value: Any) -> Any:
    """The value with slots in place of arrays."""
    if isinstance(value, tuple):
        return tuple(map(_template, value))
    if type(value) in _known and is_dataclass(value):
        return Template(type(value), tuple(map(_template, parameters(value))))
    return Slot.ARRAY if checks.is_array(value) else value


def _leaves(value: Any, template: Any) -> Iterator[Any]:
    """The parts of a value that lie where its template has slots."""
    if template is Slot.ARRAY:
        yield value
    elif isinstance(template, Template):
        yield from _leaves(parameters(value), template.parameters)
    elif isinstance(template, tuple):
        for inside, part in zip(value, template, strict=True):
            yield from _leaves(inside, part)


def _names(template: Any, name: str) -> Iterator[str]:
    """The names of the slots, those by which a loss knows its arrays where it has any."""
    if template is Slot.ARRAY:
        yield name
    elif isinstance(template, Template):
        for field, part in zip(fields(template.cls), template.parameters, strict=True):
            yield from _names(part, f"{name}.{field.name}" if name else field.name)
    elif isinstance(template, tuple):
        for index, part in enumerate(template):
            yield from _names(part, f"{name}[{index}]")


def _joined(template: Any, leaves: Iterator[Any]) -> Any:
    if template is Slot.ARRAY:
        return next(leaves)
    if isinstance(template, tuple):
        return tuple(_joined(part, leaves) for part in template)
    if not isinstance(template, Template):
        return template
    made: Any = object.__new__(template.cls)
    for field, part in zip(fields(template.cls), template.parameters, strict=True):
        object.__setattr__(made, field.name, _joined(part, leaves))
    object.__setattr__(made, _TEMPLATE, template)
    return made
