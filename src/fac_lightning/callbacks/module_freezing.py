"""Keep parts of any LightningModule as they are while the rest is trained."""

from __future__ import annotations

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from fac_lightning.patterns import match_names

__all__ = ["ModuleFreezing"]


class ModuleFreezing(Callback):
    """Freeze parameters of any LightningModule by name: no gradients, and eval mode where nothing is trained.

    The tasks of this library do so themselves (``freeze``); this is for modules of others. When training ends the
    parameters are as trainable as they came.

    Args:
        patterns: Modules, parameters, or names with wildcards, as the LightningModule names them:
            ``["encoder", "decoder.*.bias"]``.
    """

    def __init__(self, patterns: list[str]) -> None:
        if not patterns:
            raise ValueError("patterns is empty, so nothing would be frozen; name a part, or leave the callback out")
        self.patterns = tuple(patterns)
        self._frozen: list[nn.Parameter] = []
        self._silent: list[nn.Module] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Freeze, before the optimizer is made.

        Raises:
            ValueError: A pattern matches nothing, or nothing is left to train.
        """
        if stage != "fit":
            return
        # under all its names: a tensor that two modules share is frozen with either
        parameters = dict(pl_module.named_parameters(remove_duplicate=False))
        matched = match_names(self.patterns, list(parameters), "ModuleFreezing", "parameter")
        chosen = {id(parameters[name]): parameters[name] for names in matched.values() for name in names}
        self._frozen = [parameter for parameter in chosen.values() if parameter.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        left = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        if not left:
            raise ValueError(f"ModuleFreezing: {list(self.patterns)} leave nothing to train; remove a pattern")
        trainable = {module: [p.requires_grad for p in module.parameters()] for module in pl_module.modules()}
        self._silent = [module for module, found in trainable.items() if found and not any(found)]
        frozen = sum(p.numel() for p in pl_module.parameters()) - left
        rank_zero_info(f"ModuleFreezing: {left:,} parameters are trained, {frozen:,} are frozen")

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Eval mode again, whoever changed it."""
        for module in self._silent:
            if module.training:
                module.eval()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the parameters back."""
        if stage == "fit":
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen, self._silent = [], []
