"""Which streams of an answer are compared: text, speech, both together, or each on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fac_lightning.losses.base import PreferenceLoss
from fac_lightning.losses.scores import PairScores

__all__ = ["JointStreams", "SeparateStreams", "SpeechStream", "StreamMode", "TextStream"]


class StreamMode(nn.Module, ABC):
    """Ask a loss about streams. A pair without them costs nothing.

    Args:
        text_weight: Weight of the text stream; 0 leaves it out.
        speech_weight: Weight of the speech stream; 0 leaves it out.
    """

    def __init__(self, text_weight: float, speech_weight: float) -> None:
        super().__init__()
        if min(text_weight, speech_weight) < 0 or not text_weight + speech_weight:
            raise ValueError(
                f"weights of text ({text_weight}) and speech ({speech_weight}) must not be negative, nor both 0"
            )
        self.text_weight, self.speech_weight = text_weight, speech_weight

    def view(self, scores: PairScores) -> PairScores:
        """The scores with the weights of this mode."""
        return scores.weighted(self.text_weight, self.speech_weight)

    @abstractmethod
    def forward(self, loss: PreferenceLoss, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""

    def needs_reference(self, loss: PreferenceLoss) -> bool:
        """Whether the comparison asks for a reference."""
        return loss.needs_reference

    def end_step(self) -> None:
        """An optimizer step is over; for modes with losses of their own."""

    def extra_repr(self) -> str:
        """Numbers for ``repr``."""
        return f"text={self.text_weight}, speech={self.speech_weight}"


class JointStreams(StreamMode):
    """One comparison of whole answers: the streams' rewards are added.

    Args:
        text_weight: Factor on the text stream's beta.
        speech_weight: Factor on the speech stream's beta.
    """

    def __init__(self, text_weight: float = 1.0, speech_weight: float = 1.0) -> None:
        super().__init__(text_weight, speech_weight)

    def forward(self, loss: PreferenceLoss, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        return _ask(loss, self.view(scores))


class TextStream(JointStreams):
    """What is said, not how: only text is compared. The safe choice for content."""

    def __init__(self) -> None:
        super().__init__(1.0, 0.0)


class SpeechStream(JointStreams):
    """How it is said: only speech codes are compared."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)


class SeparateStreams(StreamMode):
    """Two comparisons, one per stream, and the weighted sum of their losses.

    Args:
        text_weight: Weight of the text stream's loss.
        speech_weight: Weight of the speech stream's loss.
        speech_loss: Loss of the speech stream, with a beta of its own; that of the text stream when None.
    """

    def __init__(
        self, text_weight: float = 1.0, speech_weight: float = 1.0, speech_loss: PreferenceLoss | None = None
    ) -> None:
        super().__init__(text_weight, speech_weight)
        self.speech_loss = speech_loss

    def forward(self, loss: PreferenceLoss, scores: PairScores) -> Tensor:
        """Losses ``(P,)``."""
        text = _ask(loss, scores.weighted(1, 0))
        speech = _ask(loss if self.speech_loss is None else self.speech_loss, scores.weighted(0, 1))
        return self.text_weight * text + self.speech_weight * speech

    def needs_reference(self, loss: PreferenceLoss) -> bool:
        """Whether either comparison asks for a reference."""
        return loss.needs_reference or (self.speech_loss is not None and self.speech_loss.needs_reference)

    def end_step(self) -> None:
        """Pass the word on to the speech stream's own loss."""
        if self.speech_loss is not None:
            self.speech_loss.end_step()


def _ask(loss: PreferenceLoss, scores: PairScores) -> Tensor:
    losses: Tensor = loss(scores)
    return losses.masked_fill(~scores.present, 0)
