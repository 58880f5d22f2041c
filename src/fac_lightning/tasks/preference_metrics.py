"""Metrics of preference pairs, per task and per stream. States are sums and counts: micro-batches and ranks add up."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from fac_lightning.losses import PairScores, PreferenceLoss, StreamMode

__all__ = ["PreferenceMetrics"]

#: "all" is what the loss compares, whatever its streams
STREAMS = ("all", "text", "speech")
FIELDS = (
    "loss",
    "nll",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "lengths/chosen",
    "lengths/rejected",
    "kl",
)
WHOLE = ("loss", "nll")  # of answers, not of one stream


class PreferenceMetrics(Metric):
    """Means over pairs: of all pairs by ``name``, of one stream by ``name/stream``, of one task by ``task/name``.

    * ``loss``: over all tasks it is the sum of their means, each times its weight.
    * ``nll``: negative log-likelihood per label of the chosen answers, text and speech added.
    * ``rewards/*``: what the loss calls rewards, with its beta and length normalisation; margin is chosen minus
      rejected, accuracy the share of pairs with a margin above 0.
    * ``logps/*``: log-probabilities per label. A fall of the chosen ones is the displacement that DPO is known for.
    * ``lengths/*``: labels of an answer, silence weighed.
    * ``kl``: ``exp(-d) - 1 + d`` of the log-ratio ``d`` per label of chosen answers: the estimator "k3" of how far
      the policy left the reference, on answers that it did not sample, and a lower bound of its mean over labels.

    Args:
        weights: Task -> weight of its loss.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)
        shape = (len(self.weights), len(STREAMS))
        self.add_state("sums", torch.zeros(*shape, len(FIELDS)), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(*shape), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, task: int, losses: Tensor, scores: PairScores, loss: PreferenceLoss, streams: StreamMode) -> None:
        """Add pairs of one task.

        Args:
            task: Its place among the weights.
            losses: ``(P,)``.
            scores: Of the pairs.
            loss: What was asked.
            streams: Which streams it was asked about.
        """
        whole = torch.stack([losses, scores.weighted(1, 1).nll()[0]])
        for stream, view in enumerate((streams.view(scores), scores.weighted(1, 0), scores.weighted(0, 1))):
            there = view.present
            each = torch.cat([whole, _compared(view, loss)])  # (FIELDS, P)
            self.sums[task, stream] += each.masked_fill(~there, 0).sum(1)
            self.counts[task, stream] += there.sum()

    def compute(self) -> dict[str, float]:
        """Values by name; nothing of a task or stream without pairs, no rewards or ``kl`` without a reference."""
        found: dict[str, float] = {}
        groups = [("", self.sums.sum(0), self.counts.sum(0))]
        if len(self.weights) > 1:
            groups += [(f"{name}/", self.sums[i], self.counts[i]) for i, name in enumerate(self.weights)]
        for prefix, sums, counts in groups:
            for stream, suffix in enumerate(STREAMS):
                if counts[stream] == 0:
                    continue
                for name, value in zip(FIELDS, (sums[stream] / counts[stream]).tolist(), strict=True):
                    if not math.isnan(value) and (stream == 0 or name not in WHOLE):
                        found[prefix + name + (f"/{suffix}" if stream else "")] = value
        if "loss" in found:
            means = self.sums[:, 0, 0] / self.counts[:, 0].clamp_min(1)
            found["loss"] = float(means @ means.new_tensor(list(self.weights.values())))
        return found


def _compared(view: PairScores, loss: PreferenceLoss) -> Tensor:
    """The fields that compare, ``(FIELDS - WHOLE, P)``; NaN where there is no reference to compare with."""
    told = view.reference is not None
    unknown = torch.full_like(view.policy.text, torch.nan)
    rewards = loss.rewards(view) if told or not loss.needs_reference else unknown
    margin = rewards[0] - rewards[1]
    flat, lengths = view.weighted(view.text_weight != 0, view.speech_weight != 0), view.lengths()
    ratio = flat.log_ratios(0)[0] / lengths[0].clamp_min(1) if told else unknown[0]
    accuracy = margin * 0 + (margin > 0)  # keeps NaN
    logps, kl = flat.logprobs(0) / lengths.clamp_min(1), torch.expm1(-ratio) + ratio
    return torch.stack([*rewards, margin, accuracy, *logps, *lengths, kl])
