"""From nodes to objects. Constructors get plain dicts, lists and scalars, never anything of OmegaConf."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from fac_lightning.config.errors import RecipeError, UserError
from fac_lightning.config.signatures import define, locate
from fac_lightning.config.source import BadPath

__all__ = ["accepts", "instantiate"]


def accepts(node: Mapping[str, Any], name: str) -> bool:
    """Whether the ``_target_`` of a node takes an argument."""
    return define(str(node["_target_"])).takes(name)


def instantiate(node: Any, key: str = "recipe", /, **objects: Any) -> Any:
    """Build a node and all nodes inside it.

    ``_target_`` is called with its sibling keys; with ``_partial_: true`` it becomes a ``functools.partial``. Anything
    without ``_target_`` is copied as plain dicts and lists.

    Args:
        node: A part of a resolved recipe.
        key: Its place in the recipe, for messages.
        objects: Built objects for the outermost call, passed where it takes them and the node does not say otherwise.

    Raises:
        UserError: A constructor refused its arguments or could not be imported; the text names the key.
    """
    if isinstance(node, Mapping):
        values = {name: instantiate(value, f"{key}.{name}") for name, value in node.items() if name not in _MAGIC}
        return _call(node, key, values, objects) if "_target_" in node else values
    if isinstance(node, list):
        return [instantiate(value, f"{key}.{i}") for i, value in enumerate(node)]
    return node


_MAGIC = ("_target_", "_partial_")


def _call(node: Mapping[str, Any], key: str, values: dict[str, Any], objects: Mapping[str, Any]) -> Any:
    path = str(node["_target_"])
    try:
        target = locate(path)
        given = {name: value for name, value in objects.items() if name not in values and accepts(node, name)}
    except BadPath as error:
        raise UserError(f"{key}._target_ = {path}: {error}") from error
    except ImportError as error:
        raise UserError(f"{key}: {path} cannot be imported: {error}") from error
    if node.get("_partial_", False):
        return functools.partial(target, **values, **given)
    try:
        return target(**values, **given)
    except RecipeError:
        raise
    except (TypeError, ValueError, FileNotFoundError, ImportError) as error:
        raise UserError(f"{key}: {path.split('.')[-1]}: {error}") from error
