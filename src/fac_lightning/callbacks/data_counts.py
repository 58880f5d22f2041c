"""What a run was given: rows of each source and those left out, beside its losses in the logs."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

__all__ = ["DataCounts"]


class DataCounts(Callback):
    """Log the counts of a data module that keeps any (``tally.metrics()``), summed over all processes.

    Rows of each source and tag and rows that could not be read, since the run began or went on.
    """

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log, when Lightning writes to its loggers."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        tally: Any = getattr(trainer.datamodule, "tally", None)  # type: ignore[attr-defined]
        if tally is not None and every > 0 and (trainer.global_step + 1) % every == 0:
            pl_module.log_dict(tally.metrics(), sync_dist=True, reduce_fx="sum")
