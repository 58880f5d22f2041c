"""Stacks of equal layers: two and three of them say what any number costs.

A stack is cut in a copy of the model. What a slot costs with two layers and with three gives the cost of one, and all
counts grow with the layers in a straight line; of memory too, as long as moments of the same kind are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from torch import nn

from fac_lightning.estimate.shapes import hollow

__all__ = ["FEW", "folded", "stacks_of", "straight_on"]

log = logging.getLogger(__name__)

#: Layers that stay in the two copies.
FEW = (2, 3)
#: Layers from which on cutting is worth two runs.
MANY = 8

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")


def stacks_of(model: nn.Module) -> dict[str, tuple[str, int]]:
    """Slot -> the longest stack of equal layers in it, by its name in the model, and its number of layers."""
    found: dict[str, tuple[str, int]] = {}
    inside: list[str] = []
    for name, part in model.named_modules():
        if not isinstance(part, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in inside):
            continue
        inside.append(name)
        slot = name.partition(".")[0]
        longest = found.get(slot, ("", 0))[1]
        if len(part) >= MANY and len(part) > longest and len({_looks(layer) for layer in part}) == 1:
            found[slot] = (name, len(part))
    return found


def folded(model: nn.Module, run: Callable[[Any], Found]) -> tuple[Found, Found] | None:
    """What a run gives with two layers in every stack and with three; None where a stack cannot be cut.

    Args:
        model: Stays as it is.
        run: Given a copy of the model.
    """
    stacks = stacks_of(model)
    if not stacks:
        return None
    results = []
    for layers in FEW:
        copy = hollow(model)
        for name, _ in stacks.values():
            stack = copy.get_submodule(name)
            assert isinstance(stack, nn.ModuleList)
            del stack[layers:]
        try:
            results.append(run(copy))
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            log.info(f"all layers are counted one by one: with {layers} of them the model does not run ({error})")
            return None
    return results[0], results[1]


def straight_on(
    two: Mapping[Key, int], three: Mapping[Key, int], layers: Mapping[str, int], slot: Callable[[Key], str]
) -> dict[Key, int]:
    """Counts at the real number of layers, given those at two and at three.

    Args:
        two: With two layers in every stack.
        three: With three.
        layers: Slot -> how many there really are; other slots have none that were cut.
        slot: Which slot a count belongs to.
    """
    keys = dict.fromkeys([*two, *three])
    more = {key: three.get(key, 0) - two.get(key, 0) for key in keys}
    return {key: three.get(key, 0) + max(0, layers.get(slot(key), FEW[1]) - FEW[1]) * more[key] for key in keys}


def _looks(layer: nn.Module) -> str:
    """Everything that could make two layers of a stack differ in what they do, but for their number."""
    lines = []
    for name, part in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, int | float | str | bool | None) and "idx" not in key and "index" not in key
        }
        lines.append(f"{name} {type(part).__qualname__} {sorted(plain.items(), key=str)}")
    lines += [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in layer.named_parameters()]
    return "\n".join(lines)
