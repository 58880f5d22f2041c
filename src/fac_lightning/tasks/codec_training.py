"""Train a speech codec whose decoder gives a log-mel, such as ``FSQTokenizer``."""

from __future__ import annotations

from typing import Any, Protocol, cast

import lightning
import torch
from torch import Tensor, nn

from fac_lightning.types import CodecBatch

__all__ = ["CodecTraining", "masked_l1"]


class MelListener(Protocol):
    """A frozen network that hears a mel: the hidden states of all its layers tell how alike two mels sound."""

    def forward_mel(self, mel: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        """Hidden states ``(B, U, D)`` of every layer for a log-mel ``(B, 80, M)``."""


class MelCodec(Protocol):
    """What is asked of the codec; ``FSQTokenizer`` gives it."""

    hop_length: int
    stacked_dim: int
    mels_per_frame: int
    codebook_size: int

    def log_mel(self, audio: Tensor) -> Tensor:
        """Log-mel ``(B, M, 80)`` of ``(B, S)``."""

    def extract(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Features ``(B, U, D)``."""

    def stack(self, features: Tensor) -> Tensor:
        """Features of whole code frames ``(B, T, stacked_dim)``."""

    def quantize(self, features: Tensor, frames: Tensor) -> Tensor:
        """Grid points ``(B, T, num_dims)``."""

    def decode_frames(self, points: Tensor, frames: Tensor) -> Tensor:
        """Hidden frames ``(B, T, dim)``."""

    def refine(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """Log-mel ``(B, M, 80)``."""


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of ``(B, T, D)`` over the frames where ``mask`` ``(B, T, 1)`` is 1. Shape ``()``."""
    distance = (prediction.float() - target.float()).abs().mean(-1, keepdim=True)
    return (distance * mask).sum() / mask.sum().clamp(min=1)


class CodecTraining(lightning.LightningModule):
    """Reconstruct log-mels through the codes.

    The loss is the L1 distance of the mels (and of their first differences in time, which keep onsets sharp), plus
    two terms that put intelligibility before detail: the codes must also foretell the features that the encoder
    read, as the supervised codes of CosyVoice do (https://arxiv.org/abs/2407.05407), and a frozen recogniser that hears
    both mels must answer with the same activations (perceptual loss, https://arxiv.org/abs/1603.08155).

    Args:
        model: The codec; its feature extractor stays frozen.
        listener: Frozen network with ``forward_mel``, for instance the Whisper encoder; ``None`` leaves its term out.
        lr: Peak of a one-cycle schedule that ends at zero with the last step of the trainer.
        weight_decay: Of AdamW, on matrices only.
        warmup: Part of the steps in which the rate rises.
        delta_weight: Weight of the first differences.
        semantic_weight: Weight of foretelling the features; 0 leaves it out.
        listener_weight: Weight of the listener's activations.
        listener_rows: Crops of a batch that the listener hears, ``None`` for all; it costs more than the codec.
        decoder_only: Keep encoder and quantiser, hence all codes, as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        listener: nn.Module | None = None,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        delta_weight: float = 0.5,
        semantic_weight: float = 0.1,
        listener_weight: float = 0.2,
        listener_rows: int | None = None,
        decoder_only: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.listener = model, listener
        if listener is not None:
            listener.requires_grad_(False)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.delta_weight, self.semantic_weight = delta_weight, semantic_weight
        self.listener_weight, self.listener_rows, self.decoder_only = listener_weight, listener_rows, decoder_only
        semantic = semantic_weight > 0 and not decoder_only
        codec: Any = model
        self.foretell = nn.Linear(codec.decoder_in.out_features, codec.stacked_dim) if semantic else None
        if decoder_only:
            for part in (codec.feature_norm, codec.encoder_in, codec.encoder, codec.encoder_out, codec.latent_norm):
                part.requires_grad_(False)

    @property
    def codec(self) -> MelCodec:
        """The model, typed."""
        return cast(MelCodec, self.model)

    def on_fit_start(self) -> None:
        """Begin in training mode, also with a codec that has just been used."""
        self.train()

    def on_train_epoch_start(self) -> None:
        """Keep frozen parts in evaluation mode."""
        for part in (self.listener, getattr(self.model, "features", None)):
            if part is not None:
                part.eval()

    def training_step(self, batch: CodecBatch, batch_idx: int) -> Tensor:
        """Loss of one batch of crops."""
        losses = self.losses(batch)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch.lengths))
        return losses["loss"]

    def validation_step(self, batch: CodecBatch, batch_idx: int) -> None:
        """The same losses on held-out speech."""
        losses = self.losses(batch)
        self.log_dict({f"val/{name}": value for name, value in losses.items()}, batch_size=len(batch.lengths))

    def losses(self, batch: CodecBatch) -> dict[str, Tensor]:
        """Each term and their sum under ``loss``."""
        codec = self.codec
        frames = -(-batch.lengths // codec.hop_length)
        features = codec.extract(batch.audio, batch.lengths) if batch.features is None else batch.features
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
            points = codec.quantize(features, frames)
        hidden = codec.decode_frames(points, frames)
        mel = codec.refine(hidden, frames).float()
        # the spectrum near the edge of a crop knows what was cut off, so the outer frames are not compared
        target = codec.log_mel(batch.audio)[:, : mel.shape[1]]
        mel = mel[:, : target.shape[1]]
        steps = torch.arange(mel.shape[1], device=mel.device)
        last = batch.lengths // (codec.hop_length // codec.mels_per_frame)
        mask = ((steps >= 2) & (steps < last[:, None] - 2)).unsqueeze(-1).float()
        losses = {"mel": masked_l1(mel, target, mask)}
        losses["delta"] = masked_l1(mel.diff(dim=1), target.diff(dim=1), mask[:, 1:])
        total = losses["mel"] + self.delta_weight * losses["delta"]
        if self.foretell is not None:
            losses["semantic"] = self._semantic_loss(hidden, features, frames)
            total = total + self.semantic_weight * losses["semantic"]
        if self.listener is not None and self.listener_weight > 0:
            losses["listener"] = self._listener_loss(*(item[: self.listener_rows] for item in (mel, target, mask)))
            total = total + self.listener_weight * losses["listener"]
        return losses | {"loss": total}

    def _semantic_loss(self, hidden: Tensor, features: Tensor, frames: Tensor) -> Tensor:
        stacked = self.codec.stack(features).float()
        norm = self.model.feature_norm
        target = (stacked - norm.mean) * (norm.variance + 1e-5).rsqrt()  # type: ignore[operator, union-attr]
        mask = (torch.arange(stacked.shape[1], device=frames.device) < frames[:, None]).unsqueeze(-1).float()
        return masked_l1(cast(nn.Linear, self.foretell)(hidden), target, mask)

    def _listener_loss(self, mel: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        listener = cast(MelListener, self.listener)
        with torch.no_grad():
            expected = listener.forward_mel(target.transpose(1, 2))
        heard = listener.forward_mel(torch.where(mask > 0, mel, target).transpose(1, 2))
        total = mel.new_zeros(())
        for ours, theirs in zip(heard, expected, strict=True):
            coarse = mask[:, :: -(-mask.shape[1] // ours.shape[1])][:, : ours.shape[1]]
            total = total + masked_l1(ours, theirs, coarse) / theirs.float().std().clamp(min=1e-3)
        return total / len(heard)

    def configure_optimizers(self) -> Any:
        """AdamW on a one-cycle schedule over the trainer's steps."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for _, p in trained if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for _, p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.98))
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.lr, total_steps=max(steps, 2), pct_start=self.warmup, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
