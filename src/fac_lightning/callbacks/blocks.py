"""The repeated blocks of a network, and another way to run each of them.

Blocks are the members of its outermost lists of modules (``nn.ModuleList``): layers of a transformer, wherever it comes
from. A way to run them replaces ``forward`` of the module itself, so names of weights, types and hooks stay as they
are, and taking it away gives the module back as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fac_lightning.patterns import match_names

__all__ = ["Recomputed", "chosen_blocks", "compile_block", "find_blocks", "release_block"]


class Recomputed:
    """A forward whose inner values are computed again in the backward pass instead of being kept.

    Random numbers are drawn alike both times. Without gradients the forward runs as it is.

    Args:
        inner: The forward.
    """

    def __init__(self, inner: Callable[..., Any]) -> None:
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What ``inner`` gives."""
        if not torch.is_grad_enabled():
            return self.inner(*args, **kwargs)
        return checkpoint(self.inner, *args, use_reentrant=False, **kwargs)


def find_blocks(root: nn.Module) -> dict[str, nn.Module]:
    """Name -> block of every outermost list of modules; lists inside a block (experts) are part of it."""
    return dict(_blocks(root, ""))


def chosen_blocks(root: nn.Module, patterns: Sequence[str], purpose: str) -> Mapping[str, nn.Module]:
    """Blocks that patterns name: a slot (``head``), a module above them, or names with wildcards.

    Args:
        root: The network.
        patterns: See ``fac_lightning.patterns``.
        purpose: Who asks; begins the message.

    Raises:
        ValueError: A pattern names no block.
    """
    blocks = find_blocks(root)
    matched = match_names(patterns, list(blocks), purpose, "block of layers")
    return {name: blocks[name] for names in matched.values() for name in names}


def compile_block(block: nn.Module, **options: Any) -> None:
    """Compile a block's forward; what is computed again in the backward pass is then the compiled code.

    Args:
        block: Its ``forward`` is replaced.
        options: Of ``torch.compile``.
    """
    forward = block.forward
    if isinstance(forward, Recomputed):
        block.forward = Recomputed(torch.compile(forward.inner, **options))
    else:
        block.forward = torch.compile(forward, **options)


def release_block(block: nn.Module) -> None:
    """Give a block its own forward back."""
    block.__dict__.pop("forward", None)


def _blocks(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(module, nn.ModuleList):
            yield path, child
        else:
            yield from _blocks(child, f"{path}.")
