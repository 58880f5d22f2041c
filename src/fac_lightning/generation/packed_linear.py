"""Linear layers on a CPU from weights that were laid out for it before.

A step of generation multiplies a handful of rows with every weight of the model. PyTorch's own product rearranges the
weight in every call, which then costs more than the product; oneDNN's kernel takes one that was rearranged before.
Measured on one thread with 16 rows: 2.2 times as fast for an output matrix of 32000 x 512, 1.4 to 1.9 times for the
layers of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PackedLinears"]

#: Smaller matrices are left to PyTorch: with them the call costs more than it saves.
LEAST = 2**18
#: Products of more rows are left to PyTorch: there the copy gains little.
MOST_ROWS = 512
#: For how many rows weights are laid out; the kernels for others take the same layout.
LAID_OUT_FOR = 16
#: What gives a part of a weight that is a weight again.
_PARTS = (Tensor.unflatten, Tensor.__getitem__, Tensor.to)


class PackedLinears:
    """Inside this context ``F.linear`` with a parameter of ``model`` takes a packed copy of it.

    Meanwhile the parameters stand in their modules as tensors that know their copies; afterwards all is as it was. A
    copy is made at the first product, and again when the parameter has changed.

    Args:
        model: Whose parameters are meant. Those that are not matrices in float32 on a CPU, or small, stay as they are.
        enabled: False does nothing; so does a PyTorch without oneDNN.
    """

    def __init__(self, model: nn.Module, enabled: bool = True) -> None:
        possible = enabled and torch.backends.mkldnn.is_available()
        self._places = [
            (module, name)
            for module in (model.modules() if possible else ())
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.ndim == 2 and parameter.numel() >= LEAST
        ]
        self._weights: dict[int, tuple[nn.Parameter, PackedWeight]] = {}  # by id, of parameters that are held
        self._were: list[tuple[nn.Module, str, nn.Parameter]] = []

    def __enter__(self) -> PackedLinears:
        """Put the parameters in their modules that know their copies."""
        for module, name in self._places:
            parameter = module._parameters[name]
            if type(parameter) is not nn.Parameter or not _fits(parameter):
                continue
            if id(parameter) not in self._weights:
                self._weights[id(parameter)] = parameter, PackedWeight.of(parameter)
            self._were.append((module, name, parameter))
            module._parameters[name] = self._weights[id(parameter)][1]  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        """Put the parameters back."""
        for module, name, parameter in self._were:
            module._parameters[name] = parameter
        self._were.clear()

    @property
    def copies(self) -> int:
        """Packed copies that were made so far and are in use."""
        return sum(len(weight.copies) for _, weight in self._weights.values())


class PackedWeight(Tensor):
    """A matrix, or some rows of one, that knows packed copies of itself."""

    copies: dict[tuple[int, torch.Size], tuple[int, Tensor]]  # (place in memory, shape) -> (version, packed)

    @classmethod
    def of(cls, parameter: Tensor) -> PackedWeight:
        """The same memory as a weight of this kind."""
        weight = parameter.detach().as_subclass(cls)
        weight.copies = {}
        return weight

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """A linear layer takes a packed copy; whatever else happens to the matrix as to any other."""
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear:
                return _linear(*args, **(kwargs or {}))
            result = func(*args, **(kwargs or {}))
            if func in _PARTS and isinstance(args[0], PackedWeight) and _fits(result):
                part = result.as_subclass(cls)
                part.copies = args[0].copies
                return part
            return result


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = input.numel() // max(1, input.shape[-1])
    if not isinstance(weight, PackedWeight) or not 0 < rows <= MOST_ROWS or input.dtype != torch.float32:
        return F.linear(input, weight, bias)
    key, version = (weight.data_ptr(), weight.shape), weight._version
    known = weight.copies.get(key)
    if known is None or known[0] != version:
        known = version, torch.ops.mkldnn._reorder_linear_weight(weight.as_subclass(Tensor), LAID_OUT_FOR)
        weight.copies[key] = known
    product: Tensor = torch.ops.mkldnn._linear_pointwise(input, known[1], bias, "none", [], "")
    return product
