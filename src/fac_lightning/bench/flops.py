"""FLOPs of a call, by torch's counter and what it does not know.

The counter of torch 2.13 leaves out attention on CPUs and products that add to a matrix in place. Both are taught to
it, by its own rules: a product of (m, k) and (k, n) is ``2 m k n``, masked attention counts in full, and the backward
pass of attention is five products to the forward pass's two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops", "flops_by_module"]


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs of one call."""
    with FlopCounterMode(display=False, custom_mapping=_missing()) as counter:
        call()
    return int(counter.get_total_flops())


def flops_by_module(call: Callable[[], Any]) -> Mapping[str, int]:
    """FLOPs of one call by the class path of the module that they happened in; ``Global`` is all of them."""
    with FlopCounterMode(display=False, depth=8, custom_mapping=_missing()) as counter:
        call()
    return {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def _missing() -> dict[Any, Any]:
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
        aten.addmm_: _add_product,
    }


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    """Shapes ``(B, H, L, E)``, ``(B, K, S, E)`` and ``(B, K, S, E)``."""
    batch, heads, rows, width = query
    return int(2 * batch * heads * rows * key[2] * (width + value[3]))


def _attention_backward(
    grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **options: Any
) -> int:
    """Scores again, then gradients of values, weights, queries and keys."""
    batch, heads, rows, width = query
    return int(2 * batch * heads * rows * key[2] * (3 * width + 2 * value[3]))


def _add_product(base: Any, one: Any, two: Any, *args: Any, out_shape: Any = None, **options: Any) -> int:
    """Shapes ``(m, k)`` and ``(k, n)``."""
    return int(2 * one[0] * one[1] * two[1])
