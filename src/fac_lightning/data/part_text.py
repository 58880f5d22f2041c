"""Parts as text: class and settings, alike in every process, so that a resumed run knows its data again."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from hashlib import blake2b
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch

__all__ = ["part_text"]

_ADDRESS = re.compile(r"\bat 0x[0-9a-f]+", re.IGNORECASE)


def part_text(part: object, name: str) -> str:
    """``Class(setting=value)`` of a part.

    What tells itself, as dataclasses do, is taken at its word. Of anything else the class is told by its path, and the
    arguments of its constructor by the attributes of the same names; all attributes, where it does not keep these.

    Args:
        part: Any value.
        name: Of the setting, for messages, such as ``data.reply``.

    Raises:
        ValueError: Nothing but its address in memory would be told of something.
    """
    return _text(part, name, ())


def _text(value: object, name: str, around: tuple[object, ...]) -> str:
    inside = (*around, value)
    if isinstance(value, Mapping):
        items = [f"{key!r}: " + _text(one, f"{name}[{key!r}]", inside) for key, one in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_text(one, f"{name}[{i}]", inside) for i, one in enumerate(value)) + "]"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(_text(one, name, inside) for one in value)) + "}"
    if isinstance(value, np.ndarray | torch.Tensor):
        return _array(value)
    if isinstance(value, FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if _tells_itself(value):
        return repr(value) if isinstance(value, str) else str(value)
    settings = _settings(value)
    if settings is None or any(value is one for one in around):
        owner = type(around[0] if around else value).__qualname__
        raise ValueError(
            f"{name} is a {type(value).__qualname__}, of which no resumed run would know more than an address in "
            f"memory: give {owner} a __repr__ with its settings, as dataclasses have, or keep the arguments of its "
            "constructor as attributes of the same names"
        )
    told = [f"{key}={_text(one, f'{name}.{key}', inside)}" for key, one in settings.items()]
    return f"{type(value).__module__}.{type(value).__qualname__}({', '.join(told)})"


def _tells_itself(value: object) -> bool:
    """Whether the text of a value is its own: not that of ``object``, of a dataclass that it extends, or an address."""
    kinds = type(value).__mro__
    made = next(i for i, kind in enumerate(kinds) if "__init__" in vars(kind))
    told = next(i for i, kind in enumerate(kinds) if not vars(kind).keys().isdisjoint(("__repr__", "__str__")))
    extends = made < told and is_dataclass(kinds[told])
    return kinds[told] is not object and not extends and not _ADDRESS.search(f"{value!r} {value}")


def _settings(value: Any) -> dict[str, Any] | None:
    """What the constructor was given, where it keeps it, else all attributes; None where none can be seen."""
    if isinstance(value, partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    attributes: dict[str, Any] | None = getattr(value, "__dict__", None)
    try:
        names = list(inspect.signature(type(value)).parameters)
    except (TypeError, ValueError):  # written in C
        return attributes or None
    kept = {}
    for name in names:
        for own in (name, f"_{name}"):
            if name not in kept and hasattr(value, own):
                kept[name] = getattr(value, own)
    whole = len(kept) == len(names) and (names or attributes is not None)
    return kept if whole else attributes


def _array(value: np.ndarray | torch.Tensor) -> str:
    """Type, shape and a hash of the numbers."""
    array = value if isinstance(value, np.ndarray) else value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
    return f"{value.dtype}{list(value.shape)} {blake2b(array.tobytes(), digest_size=8).hexdigest()}"
