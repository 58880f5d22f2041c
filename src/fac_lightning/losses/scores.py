"""What preference losses read of P pairs: log-probabilities of both answers, stream by stream.

Legend: P pairs, 2 answers of each (chosen, rejected).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fac_lightning.types import AnswerSums, PreferenceBatch, SpeechLMOutput

__all__ = ["PairScores", "answer_counts", "answer_logprobs"]


@dataclass(frozen=True)
class PairScores:
    """Log-probabilities of P pairs and how streams are joined.

    The reward of an answer is the weighted sum over its streams of ``(policy - reference) / count ** nu``, times beta;
    the weight of a stream is also what tells its beta from that of the other. A stream that one of the two answers
    does not have tells nothing about the pair and is left out of it.
    """

    policy: AnswerSums  # log-probabilities, nats
    counts: AnswerSums  # labels behind them
    reference: AnswerSums | None = None  # log-probabilities, nats
    text_weight: float = 1.0
    speech_weight: float = 1.0

    def weighted(self, text: float, speech: float) -> PairScores:
        """The same pairs with other weights of the streams; a weight of 0 leaves a stream out."""
        return replace(self, text_weight=text, speech_weight=speech)

    def take(self, pairs: Tensor) -> PairScores:
        """The pairs of ``pairs`` ``(p,)`` int64."""
        reference = None if self.reference is None else _take(self.reference, pairs)
        return replace(self, policy=_take(self.policy, pairs), counts=_take(self.counts, pairs), reference=reference)

    @property
    def present(self) -> Tensor:
        """Pairs ``(P,)`` of which a stream with weight has labels in both answers."""
        text, speech = ((counts > 0).all(0) for counts in (self.counts.text, self.counts.speech))
        return (text & (self.text_weight != 0)) | (speech & (self.speech_weight != 0))

    def logprobs(self, nu: float = 1.0) -> Tensor:
        """Log-probabilities of the policy ``(2, P)``, each stream over ``count ** nu``: sums at 0, means at 1."""
        return self._joined(self.policy, nu)

    def log_ratios(self, nu: float = 0.0) -> Tensor:
        """Log-ratios of policy and reference ``(2, P)``, each stream over ``count ** nu``.

        Raises:
            ValueError: There is no reference.
        """
        if self.reference is None:
            raise ValueError(
                "this loss compares with a reference, but the pairs come without log-probabilities of one; name a "
                "reference (stored, a frozen copy, or LoRA off), or take a loss without one (SimPOLoss, ORPOLoss)"
            )
        ratios = AnswerSums(self.policy.text - self.reference.text, self.policy.speech - self.reference.speech)
        return self._joined(ratios, nu)

    def nll(self) -> Tensor:
        """Negative log-likelihood per label ``(2, P)``, streams added; each answer with all that it has."""
        return -self._joined(self.policy, 1.0, alone=True)

    def lengths(self) -> Tensor:
        """Labels ``(2, P)`` that are compared: those of the streams with weight that both answers have."""
        return self.weighted(self.text_weight != 0, self.speech_weight != 0)._joined(self.counts, 0.0)

    def _joined(self, sums: AnswerSums, nu: float, alone: bool = False) -> Tensor:
        total = torch.zeros_like(sums.text)
        for name, weight in (("text", self.text_weight), ("speech", self.speech_weight)):
            values, counts = getattr(sums, name), getattr(self.counts, name)
            if weight:
                there = counts > 0 if alone else (counts > 0).all(0)
                each = values / counts.where(counts > 0, 1) ** nu
                total = total + weight * each.masked_fill(~there, 0)
        return total


def answer_logprobs(output: SpeechLMOutput, batch: PreferenceBatch) -> AnswerSums:
    """Weighted sums of the labels' log-probabilities by answer, in float32."""
    where = output.text_positions
    return AnswerSums(
        text=_by_answer(
            output.text_logprobs.float() * batch.text_weights[where], batch.text_answers[where], batch.num_pairs
        ),
        speech=_by_answer(
            (output.speech.logprobs.float() * batch.speech_weights).sum((1, 2)), batch.speech_answers, batch.num_pairs
        ),
    )


def answer_counts(batch: PreferenceBatch) -> AnswerSums:
    """Sums of the labels' weights by answer: the lengths that normalise log-probabilities."""
    return AnswerSums(
        text=_by_answer(batch.text_weights, batch.text_answers, batch.num_pairs),
        speech=_by_answer(batch.speech_weights.sum((1, 2)), batch.speech_answers, batch.num_pairs),
    )


def _by_answer(values: Tensor, answers: Tensor, num_pairs: int) -> Tensor:
    return values.new_zeros(2 * num_pairs).index_add(0, answers, values).view(2, num_pairs)


def _take(sums: AnswerSums, pairs: Tensor) -> AnswerSums:
    return AnswerSums(*(getattr(sums, field.name).index_select(1, pairs) for field in fields(sums)))
