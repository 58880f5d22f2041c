"""Supervised training of a speech LLM: pre-alignment (with ``freeze``), fine-tuning, continued training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fac_lightning.models import SpeechLM
from fac_lightning.tasks.base import PackedLineTask
from fac_lightning.types import SpeechLMOutput, SpeechTextBatch

__all__ = ["SpeechSFT"]


class SpeechSFT(PackedLineTask):
    """Learn to answer in text and speech from packed dialogues.

    The loss is the sum of the text loss and the speech loss, each the mean over its own labelled tokens
    (arXiv 2512.20156). Pre-alignment is the same task with ``freeze=["backbone"]``.

    Args:
        model: The speech LLM.
        lr: Learning rate after the warm-up.
        min_lr: Learning rate at ``trainer.max_steps``.
        warmup_steps: Optimizer steps of linear warm-up; below 1, that part of ``trainer.max_steps``.
        weight_decay: Of AdamW, on matrices only.
        betas: Of AdamW.
        text_weight: Weight of the text loss.
        speech_weight: Weight of the speech loss.
        freeze: Slots, modules or parameter patterns that are not trained, for example ``["backbone", "encoder"]``.
        lr_factors: Slots, modules or parameter patterns -> factor on the learning rate, for example
            ``{"backbone": 0.1}``; the first that matches counts.
        auxiliary_weight: Weight of the losses that parts add by themselves (``SpeechLM.auxiliary_losses``).
    """

    model: SpeechLM

    def __init__(
        self,
        model: SpeechLM,
        lr: float = 1e-4,
        min_lr: float = 1e-5,
        warmup_steps: float = 100,
        weight_decay: float = 0.01,
        betas: Sequence[float] = (0.9, 0.95),
        text_weight: float = 1.0,
        speech_weight: float = 1.0,
        freeze: Sequence[str] | None = None,
        lr_factors: Mapping[str, float] | None = None,
        auxiliary_weight: float = 1.0,
    ) -> None:
        super().__init__(
            model,
            lr,
            min_lr,
            warmup_steps,
            weight_decay,
            betas,
            text_weight,
            speech_weight,
            freeze,
            lr_factors,
            auxiliary_weight,
        )

    def forward(self, batch: SpeechTextBatch) -> SpeechLMOutput:
        """Log-probabilities of all labels of a packed line."""
        output: SpeechLMOutput = self.model(batch)
        return output
