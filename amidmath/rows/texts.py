"""Closed forms as a text and numbers, for graphs that hold neither objects nor their meaning.

The text says what is computed: classes by their names, their fields in order, and ``...`` for each
number. What has no name (a function, a class made in another one) is kept here and goes by a key.
"""

import ast
import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

MOST = 1024
"""How many things without a name are kept; graphs that hold older ones can no longer compute."""

_kept: OrderedDict[str, Any] = OrderedDict()


def kept(value: Any) -> str:
    """Keep a value, and return its key."""
    key = f"{id(value):x}"
    _kept[key] = value
    _kept.move_to_end(key)
    while len(_kept) > MOST:
        _kept.popitem(last=False)
    return key


def class_name(cls: type) -> str:
    """The name by which a class can be imported, or else its key."""
    name = f"{cls.__module__}:{cls.__qualname__}"
    return name if _imported(name) is cls else kept(cls)


def described(
    form: Any,
    name_of: Callable[[type], str] = class_name,
    key_of: Callable[[Any], str] = kept,
) -> tuple[str, list[float]]:
    """The text of a closed form, and its numbers.

    Args:
        form: frozen dataclasses of numbers, words, tuples and each other, down to the leaves.
        name_of: :func:`class_name`, or what calls it.
        key_of: :func:`kept`, likewise.
    """
    numbers: list[float] = []
    return _text(form, numbers, name_of, key_of), numbers


def restored(text: str, numbers: Sequence[float]) -> Any:
    """The closed form of a text and its numbers.

    Raises:
        RuntimeError: something without a name that is no longer kept, or of another process.
    """
    return _restored(_parsed(text), iter(numbers))


def _text(
    value: Any,
    numbers: list[float],
    name_of: Callable[[type], str],
    key_of: Callable[[Any], str],
) -> str:
    if value is None or isinstance(value, str):
        return repr(value)
    if isinstance(value, int):
        return f"{value}"  # which torch.compile knows of a size that it has as a symbol
    if isinstance(value, float):
        numbers.append(value)
        return "..."
    if isinstance(value, tuple):
        parts = [_text(part, numbers, name_of, key_of) for part in value]
        return "('tuple', " + "".join([part + ", " for part in parts]) + ")"
    if is_dataclass(value):
        parts = [
            _text(getattr(value, field.name), numbers, name_of, key_of) for field in fields(value)
        ]
        name = repr(name_of(type(value)))
        return "('of', " + name + ", " + "".join([part + ", " for part in parts]) + ")"
    return "('kept', " + repr(key_of(value)) + ")"


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    return ast.literal_eval(text)


def _restored(parsed: Any, numbers: Iterator[float]) -> Any:
    if parsed is ...:
        return next(numbers)
    if not isinstance(parsed, tuple):
        return parsed
    kind, *rest = parsed
    if kind == "tuple":
        return tuple(_restored(part, numbers) for part in rest)
    if kind == "kept":
        return _found(rest[0])
    cls = _imported(rest[0]) if ":" in rest[0] else _found(rest[0])
    made: Any = object.__new__(cls)
    for field, part in zip(fields(cls), rest[1:], strict=True):
        object.__setattr__(made, field.name, _restored(part, numbers))
    return made


def _found(key: str) -> Any:
    try:
        return _kept[key]
    except KeyError:
        raise RuntimeError(
            "a graph holds a function or a class that only the process that traced it knows, or "
            f"that {MOST} others have followed since: trace it again"
        ) from None


def _imported(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found
