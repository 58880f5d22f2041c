"""The rows of a packed line: where they start, how far a place is inside its own, and how attention is laid out.

Legend: N places of the line, R rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fac_lightning.packed import Bucket, PackedLayout, packed_layout

__all__ = ["Rows", "equal_rows", "ragged_rows"]


@dataclass(frozen=True)
class Rows:
    """Rows that do not see each other."""

    starts: Tensor  # (R,) int64, first place of each row
    position_ids: Tensor  # (N,) int64, restart at 0 in every row
    layout: PackedLayout


def ragged_rows(lengths: Tensor, device: torch.device | str) -> Rows:
    """Rows of ``lengths`` ``(R,)``; empty ones are left out."""
    lengths = lengths[lengths > 0].cpu()
    starts = lengths.cumsum(0) - lengths
    position_ids = torch.arange(int(lengths.sum())) - starts.repeat_interleave(lengths)
    return Rows(starts.to(device), position_ids.to(device), packed_layout(lengths, device))


def equal_rows(count: int, length: int, device: torch.device | str) -> Rows:
    """``count`` rows of ``length``, attended in one go; nothing is sorted and nothing waits for the device."""
    total = count * length
    places = torch.arange(total, device=device)
    bucket = Bucket(rows=count, length=length, start=0, gather=places, valid=None)
    offsets = torch.arange(0, total + 1, length, dtype=torch.int32, device=device)
    layout = PackedLayout(
        total=total, max_length=length, buckets=(bucket,) if count else (), restore=None, offsets=offsets
    )
    return Rows(places[::length], places % length, layout)
