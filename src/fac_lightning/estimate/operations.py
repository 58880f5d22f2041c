"""What one operation of PyTorch costs: floating-point operations and bytes that it reads and writes.

The formulas of PyTorch's own FLOP counter, and those of three operations that it leaves out: attention on a CPU, the
grouped product of a mixture of experts, and a product that is added in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

__all__ = ["FLOP_FORMULAS", "is_view", "operation_bytes", "operation_flops"]

aten = torch.ops.aten


def _cpu_attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _cpu_attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


def _grouped(left: Any, right: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Every row meets one matrix of the stack: ``(M, K) x (E, K, N)``, or for weights ``(K, M) x (M, N)``."""
    return int(2 * left[-2] * left[-1] * right[-1])


def _added(base: Any, left: Any, right: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return int(2 * left[0] * left[1] * right[1])


#: For ``FlopCounterMode(custom_mapping=...)``: what the counter of PyTorch leaves out; shapes in, operations out.
FLOP_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    aten._grouped_mm: _grouped,
    aten.addmm_: _added,
}


def operation_flops(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Floating-point operations of matrix products, convolutions and attention; 0 of everything else."""
    packet = func._overloadpacket
    if packet in FLOP_FORMULAS:
        shapes = [value.shape if isinstance(value, Tensor) else value for value in args]
        return FLOP_FORMULAS[packet](*shapes)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    return 0


def operation_bytes(func: Any, tensors: Sequence[Tensor], made: Sequence[Tensor]) -> int:
    """Bytes read and written, each tensor once; of a table only the rows that are taken."""
    written = sum(_bytes(leaf) for leaf in made)
    name = func._overloadpacket.__name__
    if name in ("embedding", "index_select", "index", "gather"):
        return 2 * written
    if name == "_grouped_mm" and tensors[1].ndim == 3:  # of the experts those that a token goes to
        matrices, rows = tensors[1].shape[0], tensors[0].shape[0]
        return written + _bytes(tensors[0]) + _bytes(tensors[1]) * min(matrices, rows) // matrices
    if name in ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"):
        return 0
    return written + sum(_bytes(leaf) for leaf in tensors)


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


@cache
def is_view(func: Any) -> bool:
    """Whether an operation only looks at a tensor in another way."""
    aliases = [result.alias_info for result in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases) or func.is_view
