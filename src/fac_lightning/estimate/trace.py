"""A training step without numbers: every operation is counted, every tensor is kept account of.

The step is the model's own code, so whatever a part does (rows with labels alone, layers computed again, a frozen
encoder) is in the count because it happens.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.estimate.operations import is_view, operation_bytes, operation_flops
from fac_lightning.estimate.shapes import ShapesOnly, tensors_in

__all__ = ["OUTSIDE", "Moments", "OperationTrace", "Phase", "StepMemory", "fullest"]

#: What is in no slot of the model: the product of hidden states with the text vocabulary, above all.
OUTSIDE = "text_output"
Phase = str  # "forward", "again" (layers that are computed again for the backward pass) or "backward"


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step beyond weights, optimizer and what was there before."""

    forward: Mapping[str, int]  # by slot, at the moment of the forward pass that holds most
    backward: Mapping[str, int]  # by slot, at that of the backward pass, gradients of weights left out
    backward_total: int  # most at a time in the backward pass, gradients so far included
    gradients: int  # of weights, all of them

    @property
    def activations(self) -> int:
        """Most at a time without gradients of weights."""
        return max(sum(self.forward.values()), sum(self.backward.values()))

    @property
    def peak(self) -> int:
        """Most at a time as Lightning trains: the gradients of the step before are dropped after the forward pass."""
        return max(sum(self.forward.values()) + self.gradients, self.backward_total)


#: Slot that runs -> bytes by slot at the moment of its run that holds most.
Moments = dict[str, dict[str, int]]


def fullest(moments: Moments) -> dict[str, int]:
    """The moment that holds most."""
    return max(moments.values(), key=lambda moment: sum(moment.values()), default={})


@dataclass
class _Account:
    """Bytes that are alive, by slot, and of every slot that runs the moment with most of them."""

    live: Counter[str] = field(default_factory=Counter)
    total: int = 0
    most: Counter[str] = field(default_factory=Counter)
    moments: Moments = field(default_factory=dict)

    def add(self, slot: str, size: int) -> None:
        self.live[slot] += size
        self.total += size

    def look(self, slot: str) -> None:
        if self.total > self.most[slot]:
            self.most[slot], self.moments[slot] = self.total, dict(self.live)

    def anew(self) -> Moments:
        """What was seen; from here on all moments are new."""
        seen, self.moments = self.moments, {}
        self.most.clear()
        return seen


class OperationTrace(ShapesOnly):
    """Counts what runs in it.

    Args:
        model: Whose direct parts are the slots; built in a ``ShapesOnly`` (this one or another).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.flops: Counter[tuple[str, Phase]] = Counter()
        self.bytes: Counter[tuple[str, Phase]] = Counter()
        self.expert_flops: Counter[str] = Counter()  # slot -> operations of grouped products
        self.product_bytes: Counter[str] = Counter()  # slot -> bytes of matrix products, convolutions and attention
        self._slots: list[str] = []
        self._borders: tuple[list[int], list[str]] = ([0], [OUTSIDE])  # numbers of autograd -> slot from there on
        self._account = _Account()
        self._known: dict[int, Any] = {}  # storages that are alive or were there before
        self._gradients = 0
        self._backward_total = 0
        self.forward_moments: Moments = {}

    def seen(
        self, func: Any, tensors: Sequence[Tensor], args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        """Count an operation and the tensors that it made."""
        if is_view(func):  # no work, and no memory of its own
            return
        node = torch._C._current_autograd_node()
        if node is None:
            slot, phase = self._slots[-1] if self._slots else OUTSIDE, "forward"
        else:
            slot, phase = self._slot_of(node), "again" if torch.is_grad_enabled() else "backward"
        made = list(tensors_in((out,)))
        flops, size = operation_flops(func, args, kwargs, out), operation_bytes(func, tensors, made)
        self.flops[slot, phase] += flops
        self.bytes[slot, phase] += size
        if flops:
            self.product_bytes[slot] += size
            if func._overloadpacket is torch.ops.aten._grouped_mm:
                self.expert_flops[slot] += flops
        for leaf in made:
            self._keep(leaf, slot)
        self._account.look(slot)
        self._backward_total = max(self._backward_total, self._account.total + self._gradients)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it the slots are known by name, and gradients of weights are told from other tensors."""
        hooks: list[Any] = []
        for name, part in self.model.named_children():
            hooks.append(part.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            hooks.append(part.register_forward_hook(lambda *_: self._leave(), always_call=True))
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            self._known[tensor.untyped_storage()._cdata] = None
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                hooks.append(tensor.register_post_accumulate_grad_hook(self._gradient))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def slot(self, name: str) -> Iterator[None]:
        """What runs within belongs to a slot, also where the part's ``forward`` is not called."""
        self._enter(name)
        try:
            yield
        finally:
            self._leave()

    def forget(self) -> None:
        """Count anew from here on; what is alive stays known."""
        self.flops.clear()
        self.bytes.clear()
        self.expert_flops.clear()
        self.product_bytes.clear()

    def begin_backward(self) -> None:
        """From here on it is the backward pass."""
        self.forward_moments = self._account.anew()
        self._backward_total = self._account.total

    @property
    def backward_moments(self) -> Moments:
        """Of the backward pass so far; gradients of weights are left out."""
        return self._account.moments

    def memory(self) -> StepMemory:
        """What the step held."""
        return StepMemory(
            forward=fullest(self.forward_moments),
            backward=fullest(self.backward_moments),
            backward_total=self._backward_total,
            gradients=self._gradients,
        )

    def _enter(self, name: str) -> None:
        self._slots.append(name)
        self._border(name)

    def _leave(self) -> None:
        self._slots.pop()
        self._border(self._slots[-1] if self._slots else OUTSIDE)

    def _border(self, slot: str) -> None:
        numbers, slots = self._borders
        numbers.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
        slots.append(slot)

    def _slot_of(self, node: Any) -> str:
        numbers, slots = self._borders
        return slots[bisect_right(numbers, node._sequence_nr()) - 1]

    def _keep(self, tensor: Tensor, slot: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return

        def gone(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self._account.add(slot, -size)

        self._known[key] = (weakref.ref(storage, gone), slot, size)
        self._account.add(slot, size)

    def _gradient(self, parameter: Tensor) -> None:
        """A weight's gradient is whole: it is no activation."""
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        entry = self._known.get(storage._cdata)
        if entry is not None:
            _, slot, size = entry
            self._known[storage._cdata] = None
            self._account.add(slot, -size)
        if parameter.grad is not None and entry is not None:
            self._gradients += size
