"""Preference training of a speech LLM over text and speech: multi-task DPO and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from fac_lightning.losses import PairScores, PreferenceLoss, StreamMode, answer_counts, answer_logprobs
from fac_lightning.models import SpeechLM
from fac_lightning.tasks.base import PackedLineTask, max_one
from fac_lightning.tasks.optimization import base_rate
from fac_lightning.tasks.preference_metrics import PreferenceMetrics
from fac_lightning.tasks.reference import Reference
from fac_lightning.tasks.strategies import loss_divisor
from fac_lightning.types import AnswerSums, PreferenceBatch, SpeechLMOutput, SpeechTextBatch

__all__ = ["PreferenceSettings", "SpeechDPO"]

#: Mean log-ratio per label, nats, from which the reference is not the model that training starts from.
STRANGE_START = 0.1


@dataclass(frozen=True)
class PreferenceSettings:
    """How the pairs of one task are learned.

    Args:
        loss: What a pair costs; holds beta and length normalisation.
        streams: Whether text, speech or both are compared.
        weight: Of the task's mean loss.
    """

    loss: PreferenceLoss
    streams: StreamMode
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight}; 0 leaves the task out")

    @property
    def needs_reference(self) -> bool:
        """Whether its loss compares with a reference."""
        return self.streams.needs_reference(self.loss)


class SpeechDPO(PackedLineTask):
    """Learn which of two answers is better, for several tasks at once.

    The loss is ``sum over tasks of weight / pairs * sum over its pairs of loss + sft_weight * NLL of chosen answers``.
    Pairs are counted over the whole optimizer step and all ranks, so accumulating two lines gives the gradient of one
    line that holds both. NLL is the mean over pairs of the mean per label, text and speech added; it keeps the chosen
    answers from getting unlikely together with the rejected ones.

    The model runs without dropout and other noise, as the reference does: a noisy policy would be compared with it
    for its noise. Losses that parts add by themselves (``SpeechLM.auxiliary_losses``) are left out.

    Args:
        model: The speech LLM, usually after supervised training.
        settings: Task of the pairs -> how they are learned; the name ``default`` stands for tasks without settings of
            their own.
        reference: Where log-probabilities of the reference come from; None for losses that need none. Given for those
            too, it is asked for the metrics.
        sft_weight: Weight of the chosen answers' NLL.
        lr: Learning rate after the warm-up.
        min_lr: Learning rate at ``trainer.max_steps``.
        warmup_steps: Optimizer steps of linear warm-up; below 1, that part of ``trainer.max_steps``.
        weight_decay: Of AdamW, on matrices only.
        betas: Of AdamW.
        freeze: Slots, modules or parameter patterns that are not trained.
        lr_factors: Slots, modules or parameter patterns -> factor on the learning rate; the first that matches counts.
    """

    model: SpeechLM

    def __init__(
        self,
        model: SpeechLM,
        settings: Mapping[str, PreferenceSettings],
        reference: Reference | None = None,
        sft_weight: float = 0.1,
        lr: float = 1e-6,
        min_lr: float = 0.0,
        warmup_steps: float = 20,
        weight_decay: float = 0.0,
        betas: Sequence[float] = (0.9, 0.95),
        freeze: Sequence[str] | None = None,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(model, lr, min_lr, warmup_steps, weight_decay, betas, 1.0, 1.0, freeze, lr_factors)
        if not settings:
            raise ValueError("settings is empty: say how pairs are learned, by task or under the name 'default'")
        asking = [name for name, each in settings.items() if each.needs_reference]
        if asking and reference is None:
            raise ValueError(
                f"the loss of task {asking[0]!r} compares with a reference, but there is none; set task.reference to "
                "StoredReference, FrozenReference or LoRAOffReference, or take a loss without one (SimPOLoss, ORPOLoss)"
            )
        if sft_weight < 0:
            raise ValueError(f"sft_weight must not be negative, got {sft_weight}")
        self.settings, self.sft_weight = dict(settings), sft_weight
        self.reference = reference
        # losses may remember: they belong into the checkpoint
        self.losses = nn.ModuleList(each.loss for each in settings.values())
        self.streams = nn.ModuleList(each.streams for each in settings.values())
        weights = {name: each.weight for name, each in settings.items()}
        self.train_pairs, self.val_pairs = PreferenceMetrics(weights), PreferenceMetrics(weights)

    def forward(self, batch: SpeechTextBatch) -> SpeechLMOutput:
        """Log-probabilities of all labels of a packed line."""
        output: SpeechLMOutput = self.model(batch)
        return output

    def scores(self, batch: PreferenceBatch) -> PairScores:
        """Log-probabilities of the answers of a batch, by policy and reference."""
        reference: AnswerSums | None = None if self.reference is None else self.reference(self.model, batch)
        return PairScores(answer_logprobs(self(batch.line), batch), answer_counts(batch), reference)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """The line's share of the step's loss, times what it will be divided by."""
        self.line_metrics.update(batch.line)
        scores, places = self.scores(batch), self._places(batch)
        if batch_idx == 0 and self.trainer.global_step == 0:
            self._look_at_start(scores)
        totals = self._by_settings(batch.task_totals.float(), places)
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        loss = self._loss(batch, scores, places, totals, self.train_pairs)
        return loss_divisor(self.trainer) * loss

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Count the line's pairs."""
        places = self._places(batch)
        totals = self._by_settings(batch.task_totals.float(), places)
        self._loss(batch, self.scores(batch), places, totals, self.val_pairs)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let losses remember the step; log the pairs since the last time when Lightning writes to its loggers."""
        for module in (*self.losses, *self.streams):
            module.end_step()  # type: ignore[operator]
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every < 1 or (self.trainer.global_step + 1) % every:
            return
        values = self._pair_summary("train", self.train_pairs)
        values |= {f"train/{name}": value for name, value in self.line_metrics.compute().items()}
        values["train/lr"] = base_rate(optimizer, self.lr)
        self.log("train/loss", values.pop("train/loss"), prog_bar=True)
        self.log_dict(values)
        self.line_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log all validation pairs of all ranks."""
        if self.val_pairs.update_called:
            values = self._pair_summary("val", self.val_pairs)
            self.log("val/loss", values.pop("val/loss"), prog_bar=True)
            self.log_dict(values)

    def setup(self, stage: str) -> None:
        """Freeze what is to be frozen, then look at the model that training starts from."""
        super().setup(stage)
        if self.reference is not None:
            self.reference.prepare(self.model)

    def train(self, mode: bool = True) -> SpeechDPO:
        """Eval mode for the model, also in training; only recomputation of layers goes by the mode of its module."""
        super().train(mode)
        self.model.eval()
        for module in self.model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def _loss(
        self,
        batch: PreferenceBatch,
        scores: PairScores,
        places: Sequence[int],
        totals: Tensor,
        metrics: PreferenceMetrics,
    ) -> Tensor:
        """The line's share of the loss, given pairs ``totals`` of each settings in the step; shape ()."""
        total = self.sft_weight * scores.nll()[0].sum() / max_one(totals.sum())
        mine = torch.tensor(places, device=batch.tasks.device)[batch.tasks]  # (P,)
        for place, settings in enumerate(self.settings.values()):
            pairs = (mine == place).nonzero().squeeze(1)
            if len(pairs):
                some = scores.take(pairs)
                losses = settings.streams(settings.loss, some) * batch.weights[pairs]
                total = total + settings.weight * losses.sum() / max_one(totals[place])
                metrics.update(place, losses, some, settings.loss, settings.streams)
        return total

    def _places(self, batch: PreferenceBatch) -> list[int]:
        """Which settings each of the batch's tasks goes by.

        Raises:
            ValueError: A task has none.
        """
        names = list(self.settings)
        unknown = [name for name in batch.task_names if name not in self.settings]
        if unknown and "default" not in self.settings:
            raise ValueError(
                f"there are pairs of the task {unknown[0]!r} but settings for {', '.join(names)}; add settings of this "
                "name, or under the name 'default'"
            )
        return [names.index(name if name in self.settings else "default") for name in batch.task_names]

    def _by_settings(self, totals: Tensor, places: Sequence[int]) -> Tensor:
        where = torch.tensor(places, device=totals.device)
        return totals.new_zeros(len(self.settings)).index_add(0, where, totals)

    def _look_at_start(self, scores: PairScores) -> None:
        if self.reference is None:
            return
        gap = float((scores.log_ratios(0).abs().sum() / scores.lengths().sum().clamp_min(1)).detach())
        if gap > STRANGE_START:
            rank_zero_warn(
                f"before the first step the log-probabilities of model and reference differ by {gap:.2f} nats a label: "
                "the reference is not the model that training starts from. If that is not meant, compute the stored "
                "log-probabilities again, with this model, precision and layout"
            )

    def _pair_summary(self, prefix: str, metrics: PreferenceMetrics) -> dict[str, float]:
        """Values to log, by name; the metrics start anew."""
        values = metrics.compute()
        metrics.reset()
        values["loss"] = values.get("loss", 0.0) + self.sft_weight * values.get("nll", 0.0)
        return {f"{prefix}/{name}": value for name, value in values.items()}
