"""Spend time to save memory, only where it is worth it."""

from __future__ import annotations

from collections.abc import Sequence

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from fac_lightning.callbacks.blocks import Recomputed, chosen_blocks, release_block

__all__ = ["ActivationCheckpointing"]


class ActivationCheckpointing(Callback):
    """Compute layers of any network again in the backward pass instead of keeping what is inside them.

    A layer that is computed again costs a third more and keeps only its input. The speech head is the first to choose:
    it runs on ``k`` codes a position and so has the most tokens. All weights and results stay what they are.

    Works with any LightningModule: layers are the members of its lists of modules. A part that has been told to
    recompute its own layers (``gradient_checkpointing``) is refused, it would do so twice.

    Args:
        parts: What recomputes: slots, modules or patterns of layers, as ``root`` names them: ``["head"]``,
            ``["head", "backbone"]``, ``["backbone.model.layers.*"]``.
        every: Of the layers of a part, one in so many; 1 is all of them, 2 every other.
        root: Attribute of the LightningModule that holds the parts; the LightningModule itself when empty or absent.
    """

    def __init__(self, parts: Sequence[str] = ("head",), every: int = 1, root: str = "model") -> None:
        if not parts:
            raise ValueError("parts is empty, so nothing would be recomputed; name a part, or leave the callback out")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.parts, self.every, self.root = tuple(parts), every, root
        self._changed: list[nn.Module] = []

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Change the layers, before a strategy wraps them.

        Raises:
            ValueError: A pattern names no layer, or a part recomputes its layers already.
        """
        if stage != "fit" or self._changed:
            return
        root = getattr(pl_module, self.root, pl_module) if self.root else pl_module
        blocks = chosen_blocks(root, self.parts, "ActivationCheckpointing")
        for name in blocks:
            self._refuse_twice(root, name)
        lists: dict[str, list[nn.Module]] = {}
        for name, block in blocks.items():
            lists.setdefault(name.rpartition(".")[0], []).append(block)
        self._changed = [block for found in lists.values() for block in found[:: self.every]]
        for block in self._changed:
            block.forward = Recomputed(block.forward)
        told = ", ".join(f"{len(found[:: self.every])} of {name}" for name, found in lists.items())
        rank_zero_info(f"ActivationCheckpointing: layers computed again in the backward pass: {told}")

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Give the layers back."""
        if stage == "fit":
            for block in self._changed:
                release_block(block)
            self._changed = []

    def _refuse_twice(self, root: nn.Module, name: str) -> None:
        """Refuse a layer that, or whose owner, has ``gradient_checkpointing`` on."""
        path = name
        while path:
            if getattr(root.get_submodule(path), "gradient_checkpointing", False):
                raise ValueError(
                    f"ActivationCheckpointing: {path} recomputes its layers already (gradient_checkpointing); "
                    f"turn that off, or leave {name.partition('.')[0]!r} out of parts"
                )
            path = path.rpartition(".")[0]
