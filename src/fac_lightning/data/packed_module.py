"""What data modules of packed lines share: the chat format, the endless training stream and its place on resuming."""

from __future__ import annotations

import logging
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import lightning
import torch
from lightning.pytorch.callbacks import Timer

from fac_lightning.data.packing import Budget
from fac_lightning.data.stream import PackedStream, ResumingLoader
from fac_lightning.data.text import CachedChatFormat
from fac_lightning.prompts import ChatFormat
from fac_lightning.text_tokenizer import load_text_tokenizer
from fac_lightning.types import to_device

__all__ = ["PackedDataModule"]

log = logging.getLogger(__name__)


class PackedDataModule(lightning.LightningDataModule):
    """One endless stream of packed lines to train on, one pass in fixed order to validate on.

    Args:
        text_tokenizer: Hub id or folder of the text tokenizer.
        capacity: Positions of a line.
        max_audio_seconds: Users' speech that a line may hold; no limit when None.
        max_speech_tokens: Frames of codes to say that a line may hold; no limit when None.
        look_ahead: Lines kept open while packing.
        seed: Of the stream.
        num_workers: Processes that lay out and pack; 0 does it in the training process.
        validates: Whether there is something to validate on.
    """

    prepare_data_per_node = False
    batch_type: ClassVar[type]  # of the lines
    unit: ClassVar[str]  # what the stream is made of, in messages

    def __init__(
        self,
        text_tokenizer: str,
        capacity: int,
        max_audio_seconds: float | None,
        max_speech_tokens: int | None,
        look_ahead: int,
        seed: int,
        num_workers: int,
        validates: bool,
    ) -> None:
        super().__init__()
        if look_ahead < 1:
            raise ValueError(f"look_ahead must be at least 1, got {look_ahead}; it counts lines kept open in packing")
        self.text_tokenizer, self.look_ahead = text_tokenizer, look_ahead
        self.seed, self.num_workers = seed, num_workers
        self.budget = Budget(
            capacity,
            float("inf") if max_audio_seconds is None else max_audio_seconds,
            float("inf") if max_speech_tokens is None else max_speech_tokens,
        )
        if not validates:  # for Lightning the hook is then not there, and no empty validation runs
            self.val_dataloader = None  # type: ignore[assignment]

    @cached_property
    def chat(self) -> ChatFormat:
        """Chat format over the text tokenizer, which is loaded at the first use."""
        return CachedChatFormat(load_text_tokenizer(self.text_tokenizer))

    def save_text_tokenizer(self, folder: str | Path) -> None:
        """Write a copy of the text tokenizer, special tokens included."""
        self.chat.tokenizer.save_pretrained(str(folder))  # type: ignore[attr-defined]

    def prepare_data(self) -> None:
        """Make the missing speech codes, on one process."""
        self.setup("prepare")

    def train_dataloader(self) -> Any:
        """Endless loader of packed lines.

        Raises:
            ValueError: Nothing would end the training.
        """
        trainer = self.trainer
        if trainer is not None and isinstance(trainer.limit_train_batches, float):
            timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            if trainer.max_steps == -1 and not timed:
                raise ValueError("the training stream has no end; set trainer.max_steps")
            if self.val_dataloader is not None and trainer.val_check_interval == 1.0 and trainer.limit_val_batches:
                log.warning(
                    "Validation never runs: an endless stream has no end of epoch to validate at. Set "
                    "trainer.val_check_interval to a number of batches and trainer.check_val_every_n_epoch to null."
                )
        return ResumingLoader(self, self._stream, self.num_workers)

    def state_dict(self) -> dict[str, Any]:
        """What the training stream depends on; the place in it is Lightning's own count of batches."""
        return {"stream": self._stream_settings()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Say so when the stream is not the one that the checkpoint saw: what it gives then repeats or is skipped."""
        now, then = self._stream_settings(), state_dict["stream"]
        changed = sorted(key for key in now if now[key] != then.get(key))
        if changed:
            log.warning(
                "The training stream differs from that of the checkpoint in %s: it goes on at the same number of "
                "lines, but not with the same %s.",
                ", ".join(f"{key} ({then.get(key)} -> {now[key]})" for key in changed),
                self.unit,
            )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Packed lines by ``types.to_device``; anything else as Lightning does."""
        if isinstance(batch, self.batch_type):
            return to_device(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @abstractmethod
    def _stream(self, window: int, shard: int, num_shards: int, skip: int) -> PackedStream:
        """The training stream of a shard, ``skip`` windows of ``window`` lines left out."""

    @abstractmethod
    def _stream_settings(self) -> dict[str, Any]:
        """What the order of the training stream depends on."""

    def _shared_settings(self) -> dict[str, Any]:
        """Those of ``_stream_settings`` that every packed stream has."""
        trainer = self.trainer
        return {
            "budget": str(self.budget),
            "look_ahead": self.look_ahead,
            "seed": self.seed,
            "num_workers": max(1, self.num_workers),
            "world_size": self._shard()[1],
            "accumulate_grad_batches": trainer.accumulate_grad_batches if trainer is not None else 1,
        }

    def _shard(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
