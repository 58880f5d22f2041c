"""Merging state dicts in memory, by the same plan and the same steps as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.execute import make_tensor
from fac_lightning.merging.plan import GROWING, plan_merge
from fac_lightning.merging.report import MergeReport, Sums, TensorReport
from fac_lightning.merging.source import StateSource

__all__ = ["MergedState", "merge_state_dicts"]


@dataclass(frozen=True)
class MergedState:
    """A state dict and how it was made."""

    weights: dict[str, Tensor]  # in the order of the first tuned model, then what only the base has
    report: MergeReport


def merge_state_dicts(
    base: Mapping[str, Tensor],
    tuned: Sequence[Mapping[str, Tensor]],
    method: MergeMethod,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    base_prefix: str | None = None,
    growing: Sequence[str] = GROWING,
) -> MergedState:
    """Merge state dicts; rules and result are those of ``merge_files``, to the bit.

    Args:
        base: Before training.
        tuned: After; names, shapes and types of the result are those of the first.
        method: What becomes of the tensors that both sides have.
        include: Patterns of tensors to merge; none means all. The others are copied from the tuned model.
        exclude: Patterns of tensors not to merge.
        base_prefix: Stands before the base's names in the tuned model; None finds it.
        growing: Patterns of tensors that may have more rows in the tuned model: the vocabulary.

    Returns:
        New tensors, and the report.
    """
    before = StateSource(base, "the base")
    after = [StateSource(state, f"tuned model {i}") for i, state in enumerate(tuned, start=1)]
    plan = plan_merge(before, after, method, include, exclude, base_prefix, growing)
    weights: dict[str, Tensor] = {}
    tensors: list[TensorReport] = []
    sums: dict[str, Sums] = {}
    for name, planned in plan.tensors.items():
        made: list[Tensor] = []
        report, added = make_tensor(planned, before, after, method, lambda piece, to=made: to.append(piece.clone()))  # type: ignore[misc]
        empty = torch.empty(0, dtype=planned.spec.dtype)
        weights[name] = torch.cat(made or [empty]).reshape(planned.spec.shape)
        tensors.append(report)
        if added is not None:
            sums[name] = added
    settings = {"method": method.describe(), "include": list(include), "exclude": list(exclude)}
    return MergedState(weights, MergeReport(settings, tuple(tensors), plan.notes, sums))
