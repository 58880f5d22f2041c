"""In which precision weights are merged: float32 whatever the storage, float64 where a tensor is float64."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

__all__ = ["widen", "widest"]


def widest(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """float64 if it is among them, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def widen(*tensors: Tensor) -> list[Tensor]:
    """The tensors as float32, or all as float64 if one of them is; those that are already are returned as they are.

    Raises:
        ValueError: They differ in shape, or one is no floating point tensor.
    """
    for tensor in tensors:
        if tensor.shape != tensors[0].shape:
            shapes = f"{tuple(tensors[0].shape)} and {tuple(tensor.shape)}"
            raise ValueError(f"only tensors of one shape can be merged, got {shapes}")
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"only floating point tensors can be merged, got {tensor.dtype}; copy it instead")
    dtype = widest([tensor.dtype for tensor in tensors])
    return [tensor.to(dtype) for tensor in tensors]
