"""What data modules of packed lines share: the chat format, the endless training stream and its place on resuming."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Timer

from fac_lightning.data.packing import Budget
from fac_lightning.data.resuming import ResumingLoader
from fac_lightning.data.stream import PackedStream, StreamPlace
from fac_lightning.data.stream_progress import StreamProgress, refuse_changes
from fac_lightning.data.stream_tally import StreamTally
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
        num_workers: Processes that lay out and read; 0 does it in the training process. The lines are the same.
        validates: Whether there is something to validate on.
        virtual_epoch: Optimizer steps behind which the lines that are still open are given out: a run that goes on
            plans at most so many again. None plans from the beginning.
        resume_changed: What to do when a run is to go on with other data than those of its checkpoint.
        max_bad_share: Share of rows that may be unreadable before the run stops.
        tags: The sources, each with further names under which its rows are counted; an empty one counts all alone.
    """

    prepare_data_per_node = False
    batch_type: ClassVar[type]  # of the lines

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
        virtual_epoch: int | None = None,
        resume_changed: Literal["refuse", "continue"] = "refuse",
        max_bad_share: float = 0.01,
        tags: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__()
        if virtual_epoch is not None and virtual_epoch < 1:
            raise ValueError(f"virtual_epoch must be at least 1, got {virtual_epoch}; it counts optimizer steps")
        if resume_changed not in ("refuse", "continue"):
            raise ValueError(f"resume_changed must be 'refuse' or 'continue', got {resume_changed!r}")
        if look_ahead < 1:
            raise ValueError(f"look_ahead must be at least 1, got {look_ahead}; it counts lines kept open in packing")
        self.text_tokenizer, self.look_ahead = text_tokenizer, look_ahead
        self.seed, self.num_workers = seed, num_workers
        self.virtual_epoch, self.resume_changed = virtual_epoch, resume_changed
        self.progress, self.tally = StreamProgress(), StreamTally(max_bad_share, tags)
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
        if trainer is not None and isinstance(trainer.limit_train_batches, int):
            self._tell_parts_of_steps(trainer.limit_train_batches, trainer.accumulate_grad_batches)
        return ResumingLoader(self, self._stream, self.progress, self.tally, self.num_workers)

    @staticmethod
    def _tell_parts_of_steps(batches: int, window: int) -> None:
        """Say so where an epoch of the trainer ends within an optimizer step."""
        if batches % window:
            log.warning(
                "trainer.limit_train_batches %d is no multiple of trainer.accumulate_grad_batches %d: the last step of "
                "each epoch is of %d line(s), which come again in the next",
                batches,
                window,
                batches % window,
            )

    def state_dict(self) -> dict[str, Any]:
        """The place in the training stream and what the stream depends on; to be called by all processes."""
        trainer = self.trainer
        window = trainer.accumulate_grad_batches if trainer is not None else 1
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.processed if trainer is not None else 0  # type: ignore[attr-defined]
        return {"stream": self.progress.state(batches, window, self._stream_settings())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the training stream where the checkpoint was.

        Raises:
            CheckpointError: The stream is another one and ``resume_changed`` is to refuse.
        """
        state, trainer = state_dict["stream"], self.trainer
        refuse_changes(state, self._stream_settings(), self.resume_changed)
        self.progress.restore(state, *self._shard(), trainer.accumulate_grad_batches if trainer is not None else 1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Packed lines by ``types.to_device``; anything else as Lightning does."""
        if isinstance(batch, self.batch_type):
            return to_device(batch, device)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    @abstractmethod
    def _stream(self, window: int, shard: int, num_shards: int, start: StreamPlace) -> PackedStream:
        """The training stream of a shard from ``start`` on, ``window`` lines at a time."""

    @abstractmethod
    def _stream_settings(self) -> dict[str, Any]:
        """What the order of the training stream depends on."""

    def _shared_settings(self) -> dict[str, Any]:
        """Those of ``_stream_settings`` that every packed stream has."""
        return {
            "budget": str(self.budget),
            "look_ahead": self.look_ahead,
            "seed": self.seed,
            "virtual_epoch": self.virtual_epoch,
        }

    def _shard(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
