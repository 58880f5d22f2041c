"""Keep the recipe of a run beside its results, and in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

__all__ = ["SaveRecipe", "write_recipe"]

RECIPE_FILE = "recipe.yaml"
CHECKPOINT_KEY = "fac_lightning_recipe"


class SaveRecipe(Callback):
    """Write ``recipe.yaml`` into the run folder before the first step, and its text into every checkpoint.

    A run that continues finds its own recipe there; the recipe of another run is never overwritten.

    Args:
        text: The resolved recipe (``fac_lightning.config.recipe_text``).
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Write the file.

        Raises:
            ValueError: The run folder holds another recipe.
        """
        if stage == "fit" and trainer.is_global_zero:
            write_recipe(self.text, Path(trainer.default_root_dir) / RECIPE_FILE)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the text as a plain string: a checkpoint says by itself what it is."""
        checkpoint[CHECKPOINT_KEY] = self.text


def write_recipe(text: str, path: Path) -> None:
    """Write a recipe's text; the same recipe may stand there already, another may not.

    Comment lines (versions, command line) do not make it another.

    Raises:
        ValueError: ``path`` holds another recipe.
    """
    if path.exists():
        old, new = _body(path.read_text(encoding="utf-8")), _body(text)
        if old == new:
            return
        changed = next((b for a, b in zip(old, new, strict=False) if a != b), (new if len(new) > len(old) else old)[-1])
        raise ValueError(
            f"{path} holds the recipe of another run (first difference: {changed.strip()!r}) and is never overwritten. "
            f"Take another folder (trainer.default_root_dir=...), repeat that run (fac run {path}), "
            f"or remove {path.parent}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _body(text: str) -> list[str]:
    return [line for line in text.strip().splitlines() if not line.startswith("#")]
