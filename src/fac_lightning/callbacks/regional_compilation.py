"""Compile the layers of a network one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from fac_lightning.callbacks.blocks import chosen_blocks, compile_block, release_block
from fac_lightning.packed import keep_attention_uncompiled

__all__ = ["RegionalCompilation"]


class RegionalCompilation(Callback):
    """Run ``torch.compile`` on single layers: seconds instead of minutes of compiling, as layers are alike.

    Attention over packed rows stays as it is, since rows differ from line to line; what is compiled are norms,
    projections and feed-forwards around it. Names of weights do not change, nor does what is saved.

    Name it behind ``ActivationCheckpointing``: layers that are computed again run compiled both times. It needs what
    ``torch.compile`` needs, a C++ compiler on CPUs and Triton on CUDA, and pays where layers are small: measure first.

    Args:
        parts: Slots, modules or patterns of layers, as ``root`` names them.
        backend: Of ``torch.compile``.
        mode: Of ``torch.compile``, such as ``max-autotune-no-cudagraphs``.
        dynamic: One program for lines of any length; None compiles anew for the second length and then for any.
        root: Attribute of the LightningModule that holds the parts; the LightningModule itself when empty or absent.
    """

    def __init__(
        self,
        parts: Sequence[str] = ("backbone", "head"),
        backend: str = "inductor",
        mode: str | None = None,
        dynamic: bool | None = True,
        root: str = "model",
    ) -> None:
        if not parts:
            raise ValueError("parts is empty, so nothing would be compiled; name a part, or leave the callback out")
        self.parts, self.root = tuple(parts), root
        self.options: dict[str, Any] = {"backend": backend, "mode": mode, "dynamic": dynamic}
        self._changed: list[nn.Module] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Change the layers; the first step compiles them.

        Raises:
            ValueError: A pattern names no layer.
        """
        if stage != "fit" or self._changed:
            return
        root = getattr(pl_module, self.root, pl_module) if self.root else pl_module
        blocks = chosen_blocks(root, self.parts, "RegionalCompilation")
        keep_attention_uncompiled()
        self._changed = list(blocks.values())
        for block in self._changed:
            compile_block(block, **self.options)
        rank_zero_info(f"RegionalCompilation: {len(self._changed)} layers are compiled in their first step")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the layers back."""
        if stage == "fit":
            for block in self._changed:
                release_block(block)
            self._changed = []
