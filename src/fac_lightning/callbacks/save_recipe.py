"""Keep the recipe of a run beside its results, and in its checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

__all__ = ["SaveRecipe", "refuse_other_recipe", "write_recipe"]

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

    Raises:
        ValueError: ``path`` holds another recipe.
    """
    refuse_other_recipe(text, path)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def refuse_other_recipe(text: str, path: Path) -> None:
    """Nothing, if no recipe or the same one stands at ``path``; comments (versions, command line) do not count.

    Raises:
        ValueError: ``path`` holds another recipe.
    """
    if not path.exists():
        return
    old, new = _body(path.read_text(encoding="utf-8")), _body(text)
    if old == new:
        return
    pairs = zip([*old, "(end)"], [*new, "(end)"], strict=False)
    there, here = next(((a, b) for a, b in pairs if a != b), ("", ""))
    raise ValueError(
        f"{path} holds the recipe of another run, which is never overwritten (there {there.strip()!r}, now "
        f"{here.strip()!r}). Take another folder (trainer.default_root_dir=...), repeat that run (fac run {path}), "
        f"or remove {path.parent}"
    )


def _body(text: str) -> list[str]:
    return [line for line in text.strip().splitlines() if not line.startswith("#")]
