"""Carry out what was planned for one tensor, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.plan import PlannedTensor
from fac_lightning.merging.precision import widen, widest
from fac_lightning.merging.report import Sums, TensorReport
from fac_lightning.merging.source import TensorSource, pieces

__all__ = ["BLOCK", "make_tensor"]

#: Elements merged at a time where the method is elementwise: on the CPU what is computed stays in its cache.
BLOCK, DEVICE_BLOCK = 1 << 16, 1 << 24


def make_tensor(
    planned: PlannedTensor,
    base: TensorSource,
    tuned: Sequence[TensorSource],
    method: MergeMethod,
    sink: Callable[[Tensor], None],
) -> tuple[TensorReport, Sums | None]:
    """Make one tensor of the output.

    Args:
        planned: What becomes of it.
        base: Before training.
        tuned: After.
        method: Merges.
        sink: Takes the result in pieces ``(n,)`` of the planned type, from the front to the end.

    Returns:
        Its report, and the sums behind that where it was merged.
    """
    if planned.rule == "merged":
        return _merge(planned, base, tuned, method, sink)
    note = planned.note
    if planned.rule == "mean":
        for start, stop in pieces(planned.spec.numel, BLOCK):
            wide = widen(*(tuned[i].read(planned.name, start, stop) for i in planned.tuned))
            sink(method.merge_new(wide).to(planned.spec.dtype))
    elif planned.rule == "base only":
        _copy(base, planned.base or "", 0, planned.spec.numel, sink)
    else:
        if planned.rule == "not a float":
            note = "; ".join(filter(None, (note, _differences(planned, base, tuned))))
        _copy(tuned[planned.tuned[0]], planned.name, 0, planned.spec.numel, sink)
    return TensorReport(planned.name, planned.rule, planned.spec.numel, note), None


def _merge(
    planned: PlannedTensor,
    base: TensorSource,
    tuned: Sequence[TensorSource],
    method: MergeMethod,
    sink: Callable[[Tensor], None],
) -> tuple[TensorReport, Sums]:
    sums = Sums(len(tuned))
    old = base.specs[planned.base or ""]
    # A model that lacks the tensor has not changed it.
    places = [(tuned[i], planned.name) if i in planned.tuned else (base, planned.base or "") for i in range(len(tuned))]
    places.insert(0, (base, planned.base or ""))
    wide = _Wide(widest([source.specs[name].dtype for source, name in places]), tuned[planned.tuned[0]].device)
    block = BLOCK if wide.device.type == "cpu" else DEVICE_BLOCK
    for start, stop in pieces(planned.common, block if method.elementwise else planned.common):
        before, *after = [wide(i, s.read(name, start, stop)) for i, (s, name) in enumerate(places)]
        if not method.elementwise:
            before, *after = [piece.view(old.shape) for piece in (before, *after)]
        merged = method.merge(planned.name, before, after)
        if merged.shape != before.shape:
            raise ValueError(
                f"{type(method).__name__} made {tuple(merged.shape)} of {planned.name}, which is {tuple(before.shape)}"
            )
        sums.add(before, after, merged)
        sink(merged.reshape(-1).to(planned.spec.dtype))
    sums.close()
    _copy(tuned[planned.tuned[0]], planned.name, planned.common, planned.spec.numel, sink)
    note = planned.note
    if not math.isfinite(sums.merged):
        note = "; ".join(filter(None, (note, "holds values that are not finite")))
    alpha = method.alpha_of(planned.name)
    return TensorReport.of(planned.name, planned.rule, planned.spec.numel, note, alpha, sums), sums


class _Wide:
    """Pieces in the type and on the device where they are merged; the memory of one piece serves the next."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._buffers: dict[int, Tensor] = {}

    def __call__(self, place: int, piece: Tensor) -> Tensor:
        if piece.dtype == self.dtype and piece.device == self.device:
            return piece
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != piece.shape:
            buffer = self._buffers[place] = torch.empty(piece.shape, dtype=self.dtype, device=self.device)
        return buffer.copy_(piece)


def _copy(source: TensorSource, name: str, start: int, stop: int, sink: Callable[[Tensor], None]) -> None:
    for first, last in pieces(stop - start, BLOCK):
        sink(source.read(name, start + first, start + last))


def _differences(planned: PlannedTensor, base: TensorSource, tuned: Sequence[TensorSource]) -> str:
    first = tuned[planned.tuned[0]]
    others = [
        (base, planned.base or "", "the base"),
        *((tuned[i], planned.name, tuned[i].label) for i in planned.tuned[1:]),
    ]
    differing = [label for source, name, label in others if not _equal(first, planned.name, source, name)]
    return f"differs from {' and '.join(differing)}; taken from {first.label}" if differing else ""


def _equal(one: TensorSource, name: str, two: TensorSource, other: str) -> bool:
    if one.specs[name] != two.specs[other]:
        return False
    numel = one.specs[name].numel
    return all(torch.equal(one.read(name, a, b), two.read(other, a, b)) for a, b in pieces(numel, BLOCK))
