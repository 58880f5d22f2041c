"""What Lightning's strategies and precisions do to batches and losses, where a packed line wants it otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from fac_lightning.types import PreferenceBatch, SpeechTextBatch

__all__ = ["fused_adamw", "keep_batches", "loss_divisor"]


def keep_batches(trainer: Any) -> None:
    """Let our batches pass the trainer's precision as they are.

    Half precision, FSDP and DeepSpeed cast every float that a loader gives. Waveforms would lose what is quiet in
    them and stored log-probabilities the differences that are learned from, and Lightning refuses frozen dataclasses
    altogether. Nothing is lost without the cast: parts cast where they begin to compute.
    """
    plugin = trainer.precision_plugin
    given = plugin.convert_input
    if getattr(given, "func", None) is not _convert:  # a trainer may fit twice
        plugin.convert_input = partial(_convert, given)


def loss_divisor(trainer: Any) -> int:
    """What the gradient of a line's loss is divided by before the optimizer sees it.

    Lightning divides by the micro-batches of a step, and the mean over ranks by their number. A strategy that
    accumulates by itself, DeepSpeed, divides by the micro-batches once more
    (https://github.com/huggingface/transformers/pull/35808 tells of the same).
    """
    divisor = int(trainer.accumulate_grad_batches * trainer.world_size)
    if trainer.strategy.handles_gradient_accumulation:
        divisor *= int(trainer.accumulate_grad_batches)
    return divisor


def fused_adamw(
    groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], precision: Any
) -> torch.optim.AdamW:
    """AdamW in one kernel for all parameters, wherever gradients can also be clipped.

    Lightning clips no gradients of an optimizer that could undo the scaling of half-precision losses by itself. Where
    nothing is scaled (bfloat16 needs no scaler) there is nothing to undo; with a scaler (float16) it is not fused.
    """
    mixed = isinstance(precision, MixedPrecision)
    scaled = mixed and precision.scaler is not None
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=not scaled)
    if mixed:
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


def _convert(given: Any, data: Any) -> Any:
    return data if isinstance(data, SpeechTextBatch | PreferenceBatch) else given(data)
