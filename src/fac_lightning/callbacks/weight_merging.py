"""Merge what is trained with a base while it trains, or when training ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from fac_lightning.merging import FileSource, LinearMerge, MergeMethod, MergePlan, StateSource, plan_merge
from fac_lightning.merging.execute import make_tensor
from fac_lightning.merging.report import MergeReport

__all__ = ["WeightMerging"]


class WeightMerging(Callback):
    """Merge the parameters of any LightningModule with a base: Core-Cocktail without a stage of its own.

    The base is a model on disk, such as the text LLM that training began with, of which one piece at a time is read; or
    the weights at the start of training, of which a copy is kept here and in every checkpoint. Parameters that the base
    lacks stay as they are, and so do buffers.

    Merged weights are what validation, checkpoints and ``SaveWeights`` see of that step. A run that goes on from a
    checkpoint merges with the same base and does not merge the same step twice.

    Args:
        method: How tensors are merged; None is ``LinearMerge(alpha=0.5)``.
        base: Safetensors file, transformers folder or run folder; None takes the weights at the start of training.
        every_n_steps: Merge whenever so many optimizer steps are done; None does not.
        at_end: Merge when training ends.
        reset_optimizer: Forget the optimizer's moments of the merged parameters: they belong to other weights.
        include: Patterns of parameters to merge; None means all.
        exclude: Patterns of parameters not to merge.
        base_prefix: Stands before the base's names in the module, such as ``model.backbone.``; None finds it.
    """

    def __init__(
        self,
        method: MergeMethod | None = None,
        base: str | None = None,
        every_n_steps: int | None = None,
        at_end: bool = True,
        reset_optimizer: bool = False,
        include: list[str] | None = None,
        exclude: list[str] | None = None,
        base_prefix: str | None = None,
    ) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}; None merges at the end alone")
        if every_n_steps is None and not at_end:
            raise ValueError("this would never merge: set every_n_steps, or at_end=True")
        self.method = LinearMerge() if method is None else method
        self.base, self.every_n_steps, self.at_end, self.reset_optimizer = base, every_n_steps, at_end, reset_optimizer
        self.include, self.exclude, self.base_prefix = tuple(include or ()), tuple(exclude or ()), base_prefix
        self.last_step = -1  # optimizer step of the last merge
        self.report: MergeReport | None = None  # of the last merge
        self._start: dict[str, Tensor] = {}  # weights at the start of training, where they are the base
        self._plan: MergePlan | None = None
        self._file: FileSource | None = None
        self._goes_on = False  # from a checkpoint

    @property
    def state_key(self) -> str:
        """Tells several such callbacks of one trainer apart."""
        return self._generate_state_key(base=self.base, include=self.include, exclude=self.exclude)

    def state_dict(self) -> dict[str, Any]:
        """When it last merged and, where that is the base, the weights at the start."""
        return {"last_step": self.last_step, "start": self._start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.last_step, self._start = state_dict["last_step"], dict(state_dict["start"])
        self._goes_on = True

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Refuse what cannot work before anything is loaded.

        Raises:
            ValueError: The strategy splits parameters or keeps a second copy of them.
            FileNotFoundError: There is no base.
        """
        if stage != "fit":
            return
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise ValueError(
                f"WeightMerging merges whole parameters, but {type(trainer.strategy).__name__} splits them or keeps a "
                "copy of its own; train with strategy 'ddp', or merge when training has ended (fac merge)"
            )
        self._file = None if self.base is None else FileSource(self.base)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the base and decide what is merged with it.

        Raises:
            CheckpointError: Shapes of base and module do not fit, or they have nothing in common.
            ValueError: A pattern matches nothing.
        """
        parameters = dict(pl_module.named_parameters())
        if not self._goes_on:
            self.last_step, self._start = -1, {}
            if self._file is None:  # what is frozen does not leave its start
                self._start = {name: p.detach().clone() for name, p in parameters.items() if p.requires_grad}
        self._goes_on = False
        self._plan = plan_merge(
            self._source(),
            [StateSource(parameters, type(pl_module).__name__)],
            self.method,
            self.include,
            self.exclude,
            self.base_prefix,
        )
        merged = [name for name, planned in self._plan.tensors.items() if planned.rule == "merged"]
        if self._file is None:
            self._start = {name: tensor for name, tensor in self._start.items() if name in merged}
        for note in self._plan.notes:
            rank_zero_info(f"WeightMerging: {note}")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Merge when enough optimizer steps are done."""
        if self.every_n_steps is not None and trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self._merge(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Merge what training ended with."""
        if self.at_end:
            self._merge(trainer, pl_module)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Let the base go."""
        if stage == "fit":
            if self._file is not None:
                self._file.close()
            self._file, self._plan = None, None  # the start stays: a checkpoint may still be saved

    @torch.no_grad()
    def _merge(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.last_step == trainer.global_step:  # micro-batches of one step, or the end right behind a merge
            return
        assert self._plan is not None
        self.last_step = trainer.global_step
        parameters = dict(pl_module.named_parameters())
        base, tuned = self._source(), [StateSource(parameters)]
        reports, sums = [], {}
        for name, planned in self._plan.tensors.items():
            if planned.rule == "merged":
                report, added = make_tensor(planned, base, tuned, self.method, _Into(parameters[name]))
                reports.append(report)
                if added is not None:
                    sums[name] = added
        if self._file is not None:
            self._file.close()
        if self.reset_optimizer:
            _forget(trainer.optimizers, [parameters[one.name] for one in reports])
        self.report = MergeReport({"method": self.method.describe(), "base": self.base}, tuple(reports), (), sums)
        total = self.report.total()
        rank_zero_info(
            f"WeightMerging: {len(reports)} tensors merged with {self.base or 'the weights at the start'} at step "
            f"{self.last_step}; |weights| {total['tuned_norm'][0]:.6g} -> {total['merged_norm']:.6g}, |change| was "
            f"{total['delta_norm'][0]:.6g}"
        )

    def _source(self) -> FileSource | StateSource:
        return self._file if self._file is not None else StateSource(self._start, "the start of training")


class _Into:
    """Writes pieces into a tensor, from the front."""

    def __init__(self, target: Tensor) -> None:
        self._flat, self._done = target.detach().view(-1), 0

    def __call__(self, piece: Tensor) -> None:
        size = piece.numel()
        self._flat[self._done : self._done + size].copy_(piece.reshape(-1))
        self._done += size


def _forget(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[nn.Parameter]) -> None:
    for optimizer in optimizers:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)
