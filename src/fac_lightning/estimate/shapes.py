"""Modules and tensors that have shapes and no numbers: what a model of any size can be built and run with.

Floating tensors are PyTorch's fake tensors, which only know their shape, type and device. Integers and booleans stay
real: where the rows of a line start, which positions have labels and which expert a token goes to decide how much work
there is, and they are small. What would be read off numbers that are not there is assumed: a comparison holds, nothing
is infinite, a mixture of experts sends its tokens round robin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["ShapesOnly", "hollow", "tensors_in"]

Module = TypeVar("Module", bound=nn.Module)
aten = torch.ops.aten
_FALSE = {"isnan", "isinf", "isposinf", "isneginf"}
_RANKS = {"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "multinomial"}


class ShapesOnly(TorchDispatchMode):
    """Within it floating tensors have shapes alone.

    Build a model in it and run the model in it, forward and backward; parts need not know. A subclass sees every
    operation by ``seen``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = _fake()

    def seen(
        self, func: Any, tensors: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """An operation, the tensors among its arguments, and what it gave; nothing to do here."""

    def empty(self, value: Tensor) -> Tensor:
        """A tensor like a real one, without its numbers if they are floating."""
        if isinstance(value, FakeTensor) or not value.is_floating_point():
            return value
        with self.fake:
            return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # asked at every step, and no work
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        tensors = [*tensors_in(args), *tensors_in(kwargs.values())]
        if any(isinstance(leaf, FakeTensor) for leaf in tensors):
            out = self._without_numbers(func, args, kwargs)
        elif tensors:
            out = func(*args, **kwargs)
        else:
            with self.fake:
                out = func(*args, **kwargs)
            if isinstance(out, Tensor) and not _floating(out):
                out = func(*args, **kwargs)
        self.seen(func, tensors, args, kwargs, out)
        return out

    def _without_numbers(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is aten._local_scalar_dense.default:
            return 1.0
        name = func._schema.name.removeprefix("aten::")
        if name == "masked_select":
            return args[0].new_empty(int(args[1].expand(args[0].shape).sum()))
        if name == "_grouped_mm":  # its shapes are known for bfloat16 alone, though a CPU computes more
            return args[0].new_empty(_grouped_shape(args[0], args[1], kwargs.get("offs", (*args, None, None)[2])))
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = [args[0], _positions(args[1]), *args[2:]]
        out = func(*args, **kwargs)

        def real(value: Tensor) -> Tensor:
            return value if not isinstance(value, FakeTensor) or _floating(value) else _assumed(name, value, args)

        return real(out) if isinstance(out, Tensor) else tree_map_only(Tensor, real, out)


def hollow(model: Module, dtype: torch.dtype | None = None) -> Module:
    """A copy of a model, with numbers or without, that has none; tensors that are shared stay shared.

    Args:
        model: Stays as it is.
        dtype: Of the floating parameters; as they are when None.
    """
    mode = ShapesOnly()
    memo: dict[int, Any] = {}
    for buffer in model.buffers():  # integers, and small tables
        memo[id(buffer)] = mode.empty(buffer)
    for parameter in model.parameters():
        kind = dtype if dtype is not None and parameter.is_floating_point() else parameter.dtype
        with mode.fake:
            empty = torch.empty(parameter.shape, dtype=kind, device="cpu")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among values and in their lists and tuples."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


@lru_cache(maxsize=1)
def _fake() -> FakeTensorMode:
    """One for all: tensors of two do not mix."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _floating(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _grouped_shape(left: Tensor, right: Tensor, ends: Tensor | None) -> tuple[int, ...]:
    """Shape of a grouped product: the groups are rows of one side, or of what both share."""
    if left.ndim == right.ndim == 2:
        assert ends is not None
        return len(ends), left.shape[0], right.shape[1]
    return (left.shape[0], right.shape[2]) if left.ndim == 2 else (*left.shape[:-1], right.shape[-1])


def _positions(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Masks among indices as the positions that they mean."""
    found: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype in (torch.bool, torch.uint8)
        found += list(index.nonzero().unbind(1)) if masks and index is not None else [index]
    return found


def _assumed(name: str, value: Tensor, args: Sequence[Any]) -> Tensor:
    """Integers and booleans that stand for what numbers would have given."""
    if value.dtype == torch.bool:
        return torch.full(value.shape, name not in _FALSE, device="cpu")
    fills: dict[str, Callable[[], Any]] = {"new_full": lambda: args[2], "full_like": lambda: args[1]}
    fills |= {"new_ones": lambda: 1, "ones_like": lambda: 1}
    if name in fills:
        return torch.full(value.shape, fills[name](), dtype=value.dtype, device="cpu")
    if name in _RANKS and args and isinstance(args[0], Tensor) and args[0].ndim:
        chosen = torch.arange(value.numel(), device="cpu") % args[0].shape[-1]
        return chosen.view(value.shape).to(value.dtype)
    return torch.zeros(value.shape, dtype=value.dtype, device="cpu")
