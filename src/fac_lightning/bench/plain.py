"""What a training step costs when it is written the plain way, each waste on its own or all of them together.

All run the same modules as ours, so that a ratio tells of the waste and of nothing else:

* rows padded to the longest, and everything computed on the padding too;
* the speech head on all positions, prompt and user speech included, not on the reply alone;
* logits of all positions, text and speech, in float32, where only labelled ones count.

Legend: N positions of the line, k frames per group, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fac_lightning.bench.conversations import Conversation, lay_out_conversation
from fac_lightning.bench.ours import OurImplementation
from fac_lightning.data.layout import Row
from fac_lightning.data.packing import collate_line
from fac_lightning.heads import RefinedHead
from fac_lightning.types import IGNORE, SpeechGeometry, SpeechTextBatch

__all__ = ["Waste", "padded_line", "padded_row", "plain_loss", "plain_step"]


@dataclass(frozen=True)
class Waste:
    """What is put back; nothing is computed twice for it."""

    padding: bool = False
    whole_head: bool = False  # the head's context is then the whole row, prompt included, as in the released code
    all_rows: bool = False


def padded_line(conversations: Sequence[Conversation], geometry: SpeechGeometry) -> SpeechTextBatch:
    """The rows of conversations, each as long as the longest; padding is text without a label behind a row's end."""
    rows = [lay_out_conversation(each, geometry) for each in conversations]
    longest = max(map(len, rows))
    return collate_line(
        [padded_row(row, longest - len(row)) for row in rows], longest * len(rows), geometry.sample_rate
    )


def plain_loss(ours: OurImplementation, batch: SpeechTextBatch, waste: Waste) -> Tensor:
    """The loss of ``SpeechSFT``, shape ``()``; computed as ours but for the wastes of line and logits."""
    model, head = ours.model, ours.model.head
    assert isinstance(head, RefinedHead)
    assert head.num_codebooks == 1
    read = model.read(batch)
    hidden = model.backbone(read.embeds, batch.position_ids, batch.lengths)
    labels, lengths, conditions = batch.speech_labels, batch.reply_lengths, hidden[batch.speech_positions]
    if waste.whole_head:
        everywhere = labels.new_full((len(hidden), *labels.shape[1:]), IGNORE)
        labels = everywhere.index_copy(0, batch.speech_positions, labels)
        lengths, conditions = batch.lengths, hidden
    if waste.all_rows:
        text = _summed(hidden, model.backbone.output_weight, batch.text_labels)
        states = head.states(conditions, labels, lengths)[:, 0]
        rows = labels.flatten().clamp_max(head.codebook_size)  # eos is the last row of the output
        speech = _summed(states, head.output.weight, rows)
    else:
        kept = (batch.text_labels != IGNORE).nonzero().squeeze(1)
        text = _summed(hidden[kept], model.backbone.output_weight, batch.text_labels[kept])
        speech = -head(conditions, labels, lengths).logprobs.sum()
    return text / batch.text_token_total + speech / batch.speech_token_total


def plain_step(ours: OurImplementation, batch: SpeechTextBatch, waste: Waste) -> float:
    """A training step with waste: forward, backward, optimizer; the loss."""
    loss = plain_loss(ours, batch, waste)
    loss.backward()
    ours.optimizer.step()
    ours.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _summed(states: Tensor, matrix: Tensor, labels: Tensor) -> Tensor:
    """Summed cross entropy in float32 over all logits ``(N, V)``, as transformers computes it."""
    logits = F.linear(states, matrix.to(states.dtype)).float()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")


def padded_row(row: Row, extra: int) -> Row:
    """A row with ``extra`` positions of text without labels behind it."""
    return replace(
        row,
        text_ids=np.pad(row.text_ids, (0, extra)),
        text_mask=np.pad(row.text_mask, (0, extra), constant_values=True),
        text_labels=np.pad(row.text_labels, (0, extra), constant_values=IGNORE),
    )
