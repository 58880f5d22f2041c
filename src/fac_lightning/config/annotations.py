"""Does a recipe's value fit an annotation, read as text? Scalars, ``Literal`` and plain containers are judged."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["choices", "fits"]

_SCALARS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
_LISTS = {"list", "List", "tuple", "Tuple"}
_DICTS = {"dict", "Dict"}


def fits(value: Any, annotation: str) -> bool:
    """Whether ``value`` may be passed where ``annotation`` is written; what cannot be judged from text fits."""
    tree = _parse(annotation)
    return tree is None or _fits(value, tree)


def choices(annotation: str) -> list[Any]:
    """Values of the ``Literal`` parts of an annotation."""
    tree = _parse(annotation)
    if tree is None:
        return []
    found: list[Any] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _name(node.value) == "Literal":
            found += [item.value for item in _items(node) if isinstance(item, ast.Constant)]
    return found


def _parse(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body if annotation else None
    except SyntaxError:
        return None


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _items(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _fits(value: Any, node: ast.expr) -> bool:
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # an object by the time it is passed
    match node:
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):
            return fits(value, text)
        case ast.BinOp(op=ast.BitOr()):
            return _fits(value, node.left) or _fits(value, node.right)
        case ast.Subscript():
            return _fits_subscript(value, node)
    name = _name(node)
    if name in _SCALARS:
        return isinstance(value, _SCALARS[name]) and (name == "bool" or not isinstance(value, bool))
    if name in _LISTS:
        return _is_list(value)
    if name in _DICTS:
        return isinstance(value, Mapping)
    return True


def _fits_subscript(value: Any, node: ast.Subscript) -> bool:
    name, items = _name(node.value), _items(node)
    if name == "Optional":
        return value is None or _fits(value, items[0])
    if name == "Union":
        return any(_fits(value, item) for item in items)
    if name == "Literal":
        allowed = [item.value for item in items if isinstance(item, ast.Constant)]
        return any(value == item and type(value) is type(item) for item in allowed)
    if name in ("Annotated", "Final"):
        return _fits(value, items[0])
    if name in _LISTS:
        if not _is_list(value):
            return False
        uniform = [item for item in items if not (isinstance(item, ast.Constant) and item.value is ...)]
        return len(uniform) != 1 or all(_fits(item, uniform[0]) for item in value)
    if name in _DICTS:
        return isinstance(value, Mapping) and all(_fits(item, items[-1]) for item in value.values())
    return True


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
