"""Metrics of packed lines. Their states are sums and counts, so micro-batches and ranks add up to the true mean."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from fac_lightning.types import SpeechTextBatch

__all__ = ["AuxiliaryMetrics", "LineMetrics", "StreamMetrics"]


class StreamMetrics(Metric):
    """Loss (nats per token), perplexity and accuracy of one stream; nothing while it has no token."""

    full_state_update = False
    loss_sum: Tensor
    correct: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss_sum", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logprobs: Tensor, correct: Tensor, mask: Tensor) -> None:
        """Add tokens: log-probabilities, whether each was the top one, and which of them count; all ``(...)``."""
        self.loss_sum -= logprobs.detach().masked_fill(~mask, 0).sum()
        self.correct += (correct & mask).sum()
        self.count += mask.sum()

    def compute(self) -> dict[str, float]:
        """``loss``, ``perplexity`` and ``accuracy`` over all tokens; empty when there was none."""
        count = self.count.item()
        if count == 0:
            return {}
        loss = self.loss_sum / count
        # a perplexity beyond e^80 says no more than "infinite" and would overflow a logger's float32
        values = {"loss": loss, "perplexity": loss.clamp(max=80).exp(), "accuracy": self.correct / count}
        return {name: float(value) for name, value in values.items()}


class AuxiliaryMetrics(Metric):
    """Mean over lines of the losses that parts add by themselves.

    Args:
        names: Slots whose parts have one.
    """

    full_state_update = False
    loss_sum: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("loss_sum", torch.zeros(len(self.names)), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(len(self.names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, losses: Mapping[str, Tensor]) -> None:
        """Add a line's losses ``()`` by slot; a slot without one is left out of its mean."""
        for name, loss in losses.items():
            self.loss_sum[self.names.index(name)] += loss.detach()
            self.count[self.names.index(name)] += 1

    def compute(self) -> dict[str, float]:
        """``<slot>_auxiliary`` of slots that had a loss."""
        rows = zip(self.names, self.loss_sum.tolist(), self.count.tolist(), strict=True)
        return {f"{name}_auxiliary": total / count for name, total, count in rows if count}


class LineMetrics(Metric):
    """How full the lines are, and how much audio goes through per second of wall time over all ranks."""

    full_state_update = False
    positions: Tensor
    capacity: Tensor
    seconds: Tensor
    elapsed: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("positions", "capacity"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seconds", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("elapsed", torch.zeros(()), dist_reduce_fx="mean")
        self._last: float | None = None

    def resume(self) -> None:
        """Start the clock; time before does not count."""
        self._last = time.perf_counter()

    def update(self, batch: SpeechTextBatch) -> None:
        """Add a line, and the time since the line before."""
        now = time.perf_counter()
        self.positions += batch.text_ids.numel()
        self.capacity += batch.capacity
        self.seconds += batch.seconds
        self.elapsed += now - (now if self._last is None else self._last)
        self._last = now

    def compute(self) -> dict[str, float]:
        """``fill`` in [0, 1] and ``audio_seconds_per_second``."""
        fill = float(self.positions) / max(1.0, float(self.capacity))
        return {"fill": fill, "audio_seconds_per_second": float(self.seconds) / max(1e-9, float(self.elapsed))}
