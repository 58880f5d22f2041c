"""What all tasks on packed lines share: the loss per token, what is frozen, the optimizer and the metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from fac_lightning.models import SpeechLM
from fac_lightning.patterns import match_names
from fac_lightning.tasks.metrics import AuxiliaryMetrics, LineMetrics, StreamMetrics
from fac_lightning.tasks.optimization import (
    base_rate,
    cosine_with_warmup,
    parameter_groups,
    parameter_table,
    silent_modules,
    warmup_count,
)
from fac_lightning.tasks.strategies import fused_adamw, keep_batches, loss_divisor
from fac_lightning.types import SpeechLMOutput, SpeechTextBatch

__all__ = ["PackedLineTask"]


class PackedLineTask(lightning.LightningModule, ABC):
    """Learn the labels of packed lines.

    Every token of an optimizer step weighs the same, whichever micro-batch and rank it came with: the loss of a line
    is its summed negative log-likelihood over the labelled tokens of the whole step on all ranks. So accumulating two
    lines gives the gradient of one line that holds both.

    Losses that parts add by themselves (``SpeechLM.auxiliary_losses``) are means over a line; in the mean of a step a
    line weighs by its labelled tokens. They are logged by slot and are in no logged ``loss``.

    Training metrics are means over the tokens since they were last logged, every ``trainer.log_every_n_steps``.

    Args:
        model: What is trained.
        lr: Learning rate after the warm-up.
        min_lr: Learning rate at ``trainer.max_steps``.
        warmup_steps: Optimizer steps of linear warm-up; below 1, that part of ``trainer.max_steps``.
        weight_decay: Of AdamW, on matrices only.
        betas: Of AdamW.
        text_weight: Weight of the text loss.
        speech_weight: Weight of the speech loss.
        freeze: Slots, modules or patterns of parameters that are not trained; see ``fac_lightning.patterns``. Modules
            in which nothing is trained stay in eval mode, and keep nothing for a backward pass unless something
            trained lies in front of them.
        lr_factors: Slots, modules or patterns -> factor on the learning rate.
        auxiliary_weight: Weight of the losses that parts add by themselves; they come scaled, so that 1 is the rule.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        min_lr: float,
        warmup_steps: float,
        weight_decay: float,
        betas: Sequence[float],
        text_weight: float,
        speech_weight: float,
        freeze: Sequence[str] | None,
        lr_factors: Mapping[str, float] | None,
        auxiliary_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= min_lr <= lr:
            raise ValueError(f"min_lr must be between 0 and lr ({lr}), got {min_lr}")
        if len(betas) != 2:
            raise ValueError(f"betas must be two numbers, got {list(betas)}")
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight must not be negative, got {auxiliary_weight}; 0 leaves them out")
        warmup_count(warmup_steps, max_steps=1)  # refused now, not when all is loaded
        self.model = model
        self.lr, self.min_lr, self.warmup_steps, self.weight_decay = lr, min_lr, warmup_steps, weight_decay
        self.betas = (float(betas[0]), float(betas[1]))
        self.text_weight, self.speech_weight, self.auxiliary_weight = text_weight, speech_weight, auxiliary_weight
        self.freeze_patterns, self.lr_factors = tuple(freeze or ()), dict(lr_factors or {})
        self._frozen: list[nn.Parameter] = []
        self.line_metrics = LineMetrics()
        self.train_text, self.train_speech = StreamMetrics(), StreamMetrics()
        self.val_text, self.val_speech = StreamMetrics(), StreamMetrics()
        whole = model if isinstance(model, SpeechLM) else SpeechLM(model)  # type: ignore[arg-type]
        self.train_auxiliary = AuxiliaryMetrics(list(whole.auxiliary_parts))

    @abstractmethod
    def forward(self, batch: SpeechTextBatch) -> SpeechLMOutput:
        """Log-probabilities of all labels of a packed line."""

    def loss(self, output: SpeechLMOutput, text_total: Tensor | float, speech_total: Tensor | float) -> Tensor:
        """Weighted loss of a line, each stream per labelled token of ``*_total``; an empty stream gives 0. Shape ().

        Losses of parts count by the line's share of all labelled tokens.
        """
        text = output.text_loss_sum / max_one(text_total)
        speech = output.speech_loss_sum / max_one(speech_total)
        total = self.text_weight * text + self.speech_weight * speech
        if output.auxiliary and self.auxiliary_weight:
            share = (output.text_count + output.speech_count) / max_one(text_total + speech_total)
            total = total + self.auxiliary_weight * share * torch.stack(list(output.auxiliary.values())).sum()
        return total

    def training_step(self, batch: SpeechTextBatch, batch_idx: int) -> Tensor:
        """The line's share of the step's loss, times what it will be divided by."""
        self.line_metrics.update(batch)
        output = self(batch)
        _count(output, self.train_text, self.train_speech)
        self.train_auxiliary.update(output.auxiliary)
        totals = torch.tensor([batch.text_token_total, batch.speech_token_total], device=self.device).float()
        totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        return loss_divisor(self.trainer) * self.loss(output, totals[0], totals[1])

    def validation_step(self, batch: SpeechTextBatch, batch_idx: int) -> None:
        """Count the line's tokens."""
        _count(self(batch), self.val_text, self.val_speech)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the tokens since the last time; all ranks together, and only when Lightning writes to its loggers."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every < 1 or (self.trainer.global_step + 1) % every:
            return
        values = self._summary("train", self.train_text, self.train_speech)
        values |= {f"train/{name}": value for name, value in self.line_metrics.compute().items()}
        if self.train_auxiliary.names:
            values |= {f"train/{name}": value for name, value in self.train_auxiliary.compute().items()}
            self.train_auxiliary.reset()
        values["train/lr"] = base_rate(optimizer, self.lr)
        self.log("train/loss", values.pop("train/loss"), prog_bar=True)
        self.log_dict(values)
        self.line_metrics.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the losses of all validation lines of all ranks."""
        if self.val_text.update_called:
            values = self._summary("val", self.val_text, self.val_speech)
            self.log("val/loss", values.pop("val/loss"), prog_bar=True)
            self.log_dict(values)

    def on_train_start(self) -> None:
        """Put frozen modules in eval mode (earlier, Lightning warns of them) and start the clock of the throughput."""
        self.train()
        self.line_metrics.resume()

    def on_validation_end(self) -> None:
        """Validation is no training time."""
        self.line_metrics.resume()

    def setup(self, stage: str) -> None:
        """Freeze what is to be frozen, and say what is trained."""
        keep_batches(self.trainer)
        if stage != "fit":
            return
        # under all its names: a tensor that two slots share is frozen with either
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        modules = [name for name, _ in self.model.named_modules()]
        matched = match_names(self.freeze_patterns, list(parameters), "freeze", "parameter", modules)
        chosen = {id(parameters[name]): parameters[name] for found in matched.values() for name in found}
        self._frozen = [parameter for parameter in chosen.values() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        if not any(p.requires_grad for p in parameters.values()):
            raise ValueError(f"freeze {list(self.freeze_patterns)} leaves nothing to train; remove a pattern")
        super().train()  # pretrained parts come in eval mode
        rank_zero_info(parameter_table(self.model))

    def teardown(self, stage: str) -> None:
        """Give the model back as trainable as it came."""
        if stage == "fit":
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen = []

    def train(self, mode: bool = True) -> PackedLineTask:
        """Train mode for what is trained; modules in which nothing is trained stay in eval mode."""
        super().train(mode)
        for module in silent_modules(self.model, self.freeze_patterns):
            module.eval()
        return self

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine over ``trainer.max_steps``."""
        # not trainer.estimated_stepping_batches: reading it drops the loader's saved state on resuming
        max_steps = self.trainer.max_steps
        if max_steps < 1:
            raise ValueError(f"the schedule needs the number of steps: set trainer.max_steps, got {max_steps}")
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        groups = parameter_groups(trained, self.lr, self.weight_decay, self.lr_factors)
        optimizer = fused_adamw(groups, self.lr, self.betas, self.trainer.precision_plugin)
        warmup, floor = warmup_count(self.warmup_steps, max_steps), self.min_lr / self.lr if self.lr else 0.0
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_with_warmup(step, warmup, max_steps, floor)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _summary(self, prefix: str, text: StreamMetrics, speech: StreamMetrics) -> dict[str, float]:
        """Values to log, by name; the metrics start anew."""
        streams = {"text": (text.compute(), self.text_weight), "speech": (speech.compute(), self.speech_weight)}
        text.reset()
        speech.reset()
        total = sum(weight * values.get("loss", 0.0) for values, weight in streams.values())
        named = {f"{prefix}/{stream}_{key}": v for stream, (values, _) in streams.items() for key, v in values.items()}
        return {f"{prefix}/loss": total, **named}


def max_one(count: Tensor | float) -> Tensor | float:
    """At least 1, so that a sum over nothing stays 0."""
    return count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)


def _count(output: SpeechLMOutput, text: StreamMetrics, speech: StreamMetrics) -> None:
    text.update(output.text_logprobs, output.text_correct, torch.ones_like(output.text_correct))
    speech.update(output.speech.logprobs, output.speech.correct, output.speech.mask)
