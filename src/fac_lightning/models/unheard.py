"""A packed line without the positions at which nothing was heard.

Layout gives user speech one position per group of frames before any encoder runs. An adapter of a variable rate leaves
some of them empty; without them the backbone runs as often as something was heard.

Legend: N positions of the line, N' of the shorter one, R rows, F positions of user speech, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fac_lightning.types import IGNORE, SpeechTextBatch

__all__ = ["EmbeddedLine", "without_unheard"]


@dataclass(frozen=True)
class EmbeddedLine:
    """What the backbone is given."""

    embeds: Tensor  # (N', D) fused
    batch: SpeechTextBatch  # the line that they belong to
    kept: Tensor | None  # (N',) int64, its positions in the line that was given; None: all of them


def without_unheard(batch: SpeechTextBatch, present: Tensor) -> tuple[SpeechTextBatch, Tensor]:
    """Leave out positions of user speech at which nothing came out and nothing else stands.

    Args:
        batch: A packed line.
        present: ``(F,)`` bool, something came out for the place in ``feature_positions``.

    Returns:
        The shorter line, whose ``feature_positions`` are those where something came out, and its positions ``(N',)`` in
        the line that was given.
    """
    total, device = batch.text_ids.shape[0], batch.text_ids.device
    needed = batch.text_mask | (batch.text_labels != IGNORE)
    needed = needed.index_fill(0, batch.code_positions, True).index_fill(0, batch.speech_positions, True)
    silent = torch.zeros(total, dtype=torch.bool, device=device).index_fill(0, batch.feature_positions[~present], True)
    gone = silent & ~needed
    kept = (~gone).nonzero().squeeze(1)
    place = (~gone).cumsum(0) - 1  # of each position in the shorter line
    row = torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths).to(device)  # (N,)
    in_row = torch.zeros(len(batch.lengths), dtype=torch.int64, device=device).index_add(0, row, gone.long())
    before = gone.cumsum(0) - (in_row.cumsum(0) - in_row)[row]  # left out in the row, up to here
    if batch.parents is not None:  # a row that continues another one counts on from it
        parents = batch.parents.to(device)
        before = before + in_row[parents.clamp_min(0)].where(parents >= 0, 0)[row]
    shorter = replace(
        batch,
        text_ids=batch.text_ids[kept],
        text_mask=batch.text_mask[kept],
        text_labels=batch.text_labels[kept],
        position_ids=(batch.position_ids - before)[kept],
        lengths=batch.lengths - in_row.to(batch.lengths.device),
        code_positions=place[batch.code_positions],
        speech_positions=place[batch.speech_positions],
        feature_positions=place[batch.feature_positions[present]],
    )
    return shorter, kept
