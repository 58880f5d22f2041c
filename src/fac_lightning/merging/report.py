"""What a merge did: norms, cosines and alphas of every tensor and every module."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

__all__ = ["MergeReport", "TensorReport"]


#: Elements summed up in their own precision, on the CPU and elsewhere; the sums are added as Python floats.
CHUNK, DEVICE_CHUNK = 1 << 16, 1 << 24


class Sums:
    """Squares and products of the tensors of one name, added up piece by piece.

    Args:
        num_tuned: Number of tuned models.
    """

    def __init__(self, num_tuned: int) -> None:
        self.base = self.merged = 0.0
        self.tuned, self.delta = [0.0] * num_tuned, [0.0] * num_tuned
        self._delta = torch.empty(0)

    def add(self, base: Tensor, tuned: Sequence[Tensor], merged: Tensor) -> None:
        """Take in a piece; all of one shape and type, float32 or float64."""
        chunk = CHUNK if base.device.type == "cpu" else DEVICE_CHUNK
        if base.ndim != 1 or base.numel() > chunk:
            flat = [tensor.reshape(-1).split(chunk) for tensor in (base, *tuned, merged)]
            for first, *middle, last in zip(*flat, strict=True):
                self.add(first, middle, last)
            return
        if self._delta.shape != base.shape or self._delta.dtype != base.dtype:  # a sum has one device
            self._delta = torch.empty_like(base)
        self.base += _square(base)
        self.merged += _square(merged)
        for i, tensor in enumerate(tuned):
            self.tuned[i] += _square(tensor)
            self.delta[i] += _square(torch.sub(tensor, base, out=self._delta))

    def close(self) -> None:
        """Give the memory of the last piece back."""
        self._delta = torch.empty(0)


def _square(tensor: Tensor) -> float:
    square: float = torch.dot(tensor, tensor).item()
    return square


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the output."""

    name: str
    rule: str  # merged, mean, base only, tuned only, not asked for, not a float
    numel: int
    note: str = ""
    alpha: float | None = None  # of merged ones, as all below
    base_norm: float | None = None
    merged_norm: float | None = None
    tuned_norm: tuple[float, ...] = ()  # one for each tuned model, as all below
    delta_norm: tuple[float, ...] = ()  # of tuned - base
    cosine: tuple[float | None, ...] = ()  # between base and tuned; None where one is zero

    @staticmethod
    def of(name: str, rule: str, numel: int, note: str, alpha: float, sums: Sums) -> TensorReport:
        """Report of a merged tensor."""
        norms = _Norms.of(sums)
        return TensorReport(name, rule, numel, note, alpha, **asdict(norms))

    @property
    def module(self) -> str:
        """Module that it belongs to: its block of a stack of layers, or what it is a parameter of."""
        parts = self.name.split(".")
        numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        return ".".join(parts[: numbered + 1] if numbered is not None else parts[:-1] or parts)


@dataclass(frozen=True)
class _Norms:
    base_norm: float
    merged_norm: float
    tuned_norm: tuple[float, ...]
    delta_norm: tuple[float, ...]
    cosine: tuple[float | None, ...]

    @staticmethod
    def of(sums: Sums) -> _Norms:
        cosines = []
        for square, delta in zip(sums.tuned, sums.delta, strict=True):
            length = math.sqrt(sums.base * square)
            # the law of cosines: exact where it matters, close to 1, and one product less
            cosines.append((sums.base + square - delta) / (2 * length) if length > 0 else None)
        return _Norms(
            math.sqrt(sums.base),
            math.sqrt(sums.merged),
            tuple(map(math.sqrt, sums.tuned)),
            tuple(map(math.sqrt, sums.delta)),
            tuple(cosines),
        )


@dataclass(frozen=True)
class MergeReport:
    """All tensors of the output, and what made them."""

    settings: dict[str, Any]  # models, method, patterns
    tensors: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()
    sums: dict[str, Sums] = field(default_factory=dict, repr=False, compare=False)  # of merged tensors, by name

    @property
    def rules(self) -> dict[str, int]:
        """How many tensors went by each rule."""
        return dict(Counter(tensor.rule for tensor in self.tensors).most_common())

    def total(self) -> dict[str, Any]:
        """Figures summed over all tensors; ``base_norm`` and so on over those that were merged."""
        return self._summed(self.tensors)

    def modules(self) -> dict[str, dict[str, Any]]:
        """Figures summed over the tensors of every module, each layer of a stack for itself."""
        groups: dict[str, list[TensorReport]] = {}
        for tensor in self.tensors:
            groups.setdefault(tensor.module, []).append(tensor)
        return {module: self._summed(found) for module, found in groups.items()}

    def _summed(self, tensors: Iterable[TensorReport]) -> dict[str, Any]:
        found = list(tensors)
        summed: dict[str, Any] = {
            "rules": dict(Counter(tensor.rule for tensor in found)),
            "numel": sum(tensor.numel for tensor in found),
            "alphas": sorted({tensor.alpha for tensor in found if tensor.alpha is not None}),
        }
        parts = [self.sums[tensor.name] for tensor in found if tensor.name in self.sums]
        if parts:
            total = Sums(len(parts[0].tuned))
            for part in parts:
                total.base += part.base
                total.merged += part.merged
                total.tuned = [a + b for a, b in zip(total.tuned, part.tuned, strict=True)]
                total.delta = [a + b for a, b in zip(total.delta, part.delta, strict=True)]
            summed |= asdict(_Norms.of(total))
        return summed

    def as_json(self) -> dict[str, Any]:
        """Plain values; a number that is not finite becomes None, as JSON has none."""
        return {
            "settings": self.settings,
            "rules": self.rules,
            "notes": list(self.notes),
            "modules": _finite(self.modules()),
            "tensors": [_finite(asdict(tensor)) for tensor in self.tensors],
        }

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def table(self) -> Table:
        """Modules for the screen, the layers of a stack in one row."""
        stacks: dict[str, list[TensorReport]] = {}
        for tensor in self.tensors:
            stacks.setdefault(_stack(tensor.module), []).append(tensor)
        table = Table("module", "tensors", "alpha", "|base|", "|tuned|", "|change|", "|merged|", "cosine")
        for column in table.columns[2:]:
            column.justify = "right"
        for stack, found in stacks.items():
            table.add_row(stack, *_cells(self._summed(found)))
        return table


def _stack(module: str) -> str:
    head, _, last = module.rpartition(".")
    return head if last.isdecimal() and head else module


def _cells(summed: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{count} {rule}" for rule, count in summed["rules"].items())
    if "base_norm" not in summed:
        yield from [""] * 6
        return
    alphas = summed["alphas"]
    yield f"{alphas[0]:g}" if len(alphas) == 1 else f"{alphas[0]:g} .. {alphas[-1]:g}"
    yield f"{summed['base_norm']:.4g}"
    for name in ("tuned_norm", "delta_norm"):
        yield " ".join(f"{value:.4g}" for value in summed[name])
    yield f"{summed['merged_norm']:.4g}"
    yield " ".join("" if value is None else f"{value:.5f}" for value in summed["cosine"])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
