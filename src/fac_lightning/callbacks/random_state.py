"""A run that goes on draws the random numbers that it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

__all__ = ["RandomState"]


class RandomState(Callback):
    """Keep the state of the random generators of every process in checkpoints: dropout goes on where it was.

    Python's, NumPy's and PyTorch's generators, with that of the process's own GPU. They are set when the first batch
    of the run that goes on begins, so that what setting up draws does not count. With another number of processes
    nothing is set, because there is no state for each. A checkpoint that is written in the midst of an optimizer step
    keeps the state of its beginning, because data modules of packed lines begin that step anew.
    """

    def __init__(self) -> None:
        self._kept: list[dict[str, Any]] = []  # of every rank, from a checkpoint
        self._begun: dict[str, Any] | None = None  # at the beginning of the running optimizer step

    def state_dict(self) -> dict[str, Any]:
        """States of all ranks; to be called by all."""
        mine = dict(self._begun or _state())
        name, keys, *rest = mine["numpy"]  # the array as a list: checkpoints are read without trust
        mine["numpy"] = [name, np.asarray(keys).tolist(), *rest]
        if not _distributed():
            return {"ranks": [mine]}
        every: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, mine)
        return {"ranks": every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what a checkpoint holds."""
        self._kept = state_dict["ranks"]

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the generators before the first batch; remember the state in which an optimizer step begins."""
        self._set()
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._begun = _state()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forget it when the step is done."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._begun = None

    def _set(self) -> None:
        kept, self._kept = self._kept, []
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _distributed() else (0, 1)
        if len(kept) != ranks:
            return
        mine = kept[rank]
        random.setstate(mine["python"])
        np.random.set_state(tuple(mine["numpy"]))
        torch.set_rng_state(mine["torch"])
        if mine["cuda"] is not None and torch.cuda.is_initialized():
            torch.cuda.set_rng_state(mine["cuda"])


def _state() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
