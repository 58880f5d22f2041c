"""Where preference training finds the log-probabilities of its reference model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from fac_lightning.losses import answer_logprobs
from fac_lightning.types import AnswerSums, PreferenceBatch

__all__ = ["FrozenReference", "LoRAOffReference", "Reference", "StoredReference"]


@runtime_checkable
class SwitchableBackbone(Protocol):
    """A backbone whose trained updates can be left out for a while; ``LoRABackbone`` is one."""

    def update_parameters(self) -> list[nn.Parameter]:
        """The parameters of the updates."""

    def without_updates(self) -> AbstractContextManager[None]:
        """Inside, the backbone is the one that training started from."""


class Reference(nn.Module, ABC):
    """Give the log-probabilities of the model that training must not leave too far behind."""

    def prepare(self, model: nn.Module) -> None:
        """Look at the model before its first step; called once what is frozen is frozen."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: PreferenceBatch) -> AnswerSums:
        """Log-probabilities ``(2, P)`` of the answers of a batch, without gradients."""


class StoredReference(Reference):
    """Log-probabilities that were computed once and come with the data (``ReferenceLogprobs``): no second model."""

    def forward(self, model: nn.Module, batch: PreferenceBatch) -> AnswerSums:
        """What the batch brings.

        Raises:
            ValueError: It brings nothing.
        """
        if batch.reference is None:
            raise ValueError(
                "the pairs come without stored log-probabilities of the reference; compute them with the job "
                "fac_lightning.tasks.ReferenceLogprobs and name its folder as data.reference, or take FrozenReference"
            )
        return batch.reference


class FrozenReference(Reference):
    """A frozen copy of the model as it is when training starts: twice the memory, one forward more a line.

    The copy is part of the checkpoint, so that a resumed run keeps its reference.
    """

    copy: nn.Module

    def prepare(self, model: nn.Module) -> None:
        """Copy the model, the first time."""
        if "copy" not in self._modules:
            self.copy = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def forward(self, model: nn.Module, batch: PreferenceBatch) -> AnswerSums:
        """Ask the copy."""
        self.copy.eval()
        return answer_logprobs(self.copy(batch.line), batch)


class LoRAOffReference(Reference):
    """The model itself with the updates of its ``LoRABackbone`` left out: no second model, one forward more a line."""

    def prepare(self, model: nn.Module) -> None:
        """See that the updates are all that is trained.

        Raises:
            ValueError: The backbone has no updates to leave out, or something else is trained too.
        """
        backbone = self._backbone(model)
        updates = {id(parameter) for parameter in backbone.update_parameters()}
        others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in updates]
        if others:
            raise ValueError(
                f"LoRAOffReference: {others[0]} and {len(others) - 1} other parameters are trained beside the updates, "
                "so without the updates the model is not the one of the start; freeze them (task.freeze), or take "
                "FrozenReference or StoredReference"
            )

    @torch.no_grad()
    def forward(self, model: nn.Module, batch: PreferenceBatch) -> AnswerSums:
        """Ask the model without its updates."""
        with self._backbone(model).without_updates():
            return answer_logprobs(model(batch.line), batch)

    @staticmethod
    def _backbone(model: nn.Module) -> SwitchableBackbone:
        backbone = getattr(model, "backbone", None)
        if not isinstance(backbone, SwitchableBackbone):
            raise ValueError(
                f"LoRAOffReference leaves low-rank updates out, but {type(backbone).__name__} has none; take "
                "fac_lightning.backbones.LoRABackbone, or FrozenReference or StoredReference"
            )
        return backbone
