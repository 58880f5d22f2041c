"""One progress bar for a whole training, counted in optimizer steps."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["StepProgress"]


class StepProgress(ProgressBar):
    """Show steps done of all steps, the time left and the logged metrics.

    Lightning's bars count batches of an epoch; a stream of packed lines has no epoch worth the name, and what one
    wants to know is how long the training still takes.

    Args:
        title: Stands before the bar.
        refresh_rate: Screen updates per second.
    """

    def __init__(self, title: str = "train", refresh_rate: float = 2.0) -> None:
        super().__init__()
        self.title, self.refresh_rate = title, refresh_rate
        self._bar: Progress | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: what Lightning asks of every rank but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the bar where training starts or goes on."""
        if not self._enabled:
            return
        total = trainer.max_steps if trainer.max_steps > 0 else trainer.estimated_stepping_batches
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            refresh_per_second=self.refresh_rate,
        )
        known = total if total != float("inf") else None
        self._task = self._bar.add_task(self.title, total=known, completed=trainer.global_step, metrics="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if self._bar is not None:
            metrics = self.get_metrics(trainer, pl_module)
            shown = " ".join(f"{name} {value:.3g}" for name, value in metrics.items() if isinstance(value, int | float))
            self._bar.update(self._task, completed=trainer.global_step, metrics=shown)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the full bar on the screen."""
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Give the screen back before the error is told."""
        self._close()

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Metrics logged with ``prog_bar=True``."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
