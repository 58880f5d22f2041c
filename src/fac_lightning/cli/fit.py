"""Train a recipe: check everything, seed, build, save the recipe, run."""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fac_lightning.cli.build import build, run_folder
from fac_lightning.cli.sizes import with_sizes
from fac_lightning.config import Recipe, UserError, ensure, load, recipe_text

__all__ = ["FitResult", "fit"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What a training leaves."""

    folder: Path  # recipe.yaml, model.safetensors, checkpoints/, logs/
    steps: int  # optimizer steps since the beginning
    metrics: dict[str, float] = field(default_factory=dict)  # last value of each


def fit(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    command: Sequence[str] | None = None,
    resume: bool = False,
) -> FitResult:
    """Train.

    The run folder gets ``recipe.yaml`` before the first step, ``checkpoints/last.ckpt`` on the way and
    ``model.safetensors`` at the end.

    Args:
        recipe: A composed recipe, or what ``config.load`` takes.
        overrides: Words such as ``trainer.max_steps=100``, for a recipe that is not composed yet.
        command: Command line for the header of the saved recipe; that of this process by default.
        resume: Go on from ``checkpoints/last.ckpt`` of the run folder, where there is one.

    Raises:
        RecipeError: Lists all that is wrong with the recipe.
        UserError: A part could not be built.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load(recipe, overrides)
    ensure(recipe)
    recipe = _with_folder(with_sizes(recipe))
    folder = run_folder(recipe)
    start = _checkpoint(recipe, folder, resume)
    text = recipe_text(_without_continuation(recipe, folder), command)
    import lightning

    from fac_lightning.callbacks import DataCounts, RandomState, SaveRecipe, SaveWeights, refuse_other_recipe

    try:
        refuse_other_recipe(text, folder / "recipe.yaml")
    except ValueError as error:
        raise UserError(str(error)) from None
    with _quiet():
        if recipe.tree.get("seed") is not None:
            lightning.seed_everything(recipe.tree["seed"], workers=True, verbose=False)
        earlier = _logged(folder) if start else []
        built = build(recipe, [SaveRecipe(text), SaveWeights(), RandomState(), DataCounts()])
        _start_from(recipe, built.task.model if hasattr(built.task, "model") else built.model)
        _keep_text_tokenizer(recipe, folder)
        if earlier:
            built.trainer.callbacks.append(_keep_log(earlier))
        built.trainer.fit(built.task, datamodule=built.data, ckpt_path=start)
        if built.trainer.checkpoint_callback is not None and not built.trainer.fast_dev_run:
            built.trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    metrics = {name: float(value) for name, value in built.trainer.logged_metrics.items()}
    metrics |= {name: float(value) for name, value in built.trainer.callback_metrics.items()}
    return FitResult(folder, built.trainer.global_step, metrics)


def _with_folder(recipe: Recipe) -> Recipe:
    """The run folder written into the recipe, so that the saved file repeats this very run."""
    trainer = {**(recipe.tree.get("trainer") or {}), "default_root_dir": str(run_folder(recipe))}
    return replace(recipe, tree={**recipe.tree, "trainer": trainer})


def _without_continuation(recipe: Recipe, folder: Path) -> Recipe:
    """A run that goes on in its own folder is still the run that began there."""
    path = recipe.tree.get("ckpt_path")
    if path is None or (path != "last" and not Path(path).resolve().is_relative_to(folder.resolve())):
        return recipe
    return replace(recipe, tree={name: value for name, value in recipe.tree.items() if name != "ckpt_path"})


def _start_from(recipe: Recipe, model: Any) -> None:
    if recipe.tree.get("init_from"):
        from fac_lightning.callbacks import load_weights

        loaded = load_weights(model, recipe.tree["init_from"], strict=False)
        log.info(f"start from {recipe.tree['init_from']}: {loaded}")


def _keep_text_tokenizer(recipe: Recipe, folder: Path) -> None:
    """Copy the text tokenizer into the run folder: without it the weights mean nothing."""
    name = (recipe.tree.get("data") or {}).get("text_tokenizer")
    if isinstance(name, str) and not (folder / "text_tokenizer").exists():
        from fac_lightning.text_tokenizer import load_text_tokenizer

        load_text_tokenizer(name).save_pretrained(folder / "text_tokenizer")


def _checkpoint(recipe: Recipe, folder: Path, resume: bool) -> str | None:
    path, last = recipe.tree.get("ckpt_path"), folder / "checkpoints" / "last.ckpt"
    if path and path != "last":
        return str(path)
    if (path == "last" or resume) and last.exists():  # a folder where DeepSpeed wrote it
        log.info(f"going on from {last}")
        return str(last)
    return None


def _logged(folder: Path) -> list[dict[str, str]]:
    """Rows that a run wrote to its log so far; CSVLogger deletes the file when it opens it again."""
    path = folder / "logs" / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def _keep_log(rows: list[dict[str, str]]) -> Any:
    """Callback that writes earlier rows back before a run goes on, up to the step where it does."""
    from lightning.pytorch.callbacks import LambdaCallback
    from lightning.pytorch.loggers import CSVLogger

    def write(trainer: Any, task: Any) -> None:
        kept = [row for row in rows if int(row["step"]) < trainer.global_step]
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                logger.experiment.metrics[:0] = kept
                logger.save()

    return LambdaCallback(on_train_start=write)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advertisements and advice on what is meant so off the screen; what our parts say stays."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    ours = logging.getLogger("lightning.pytorch.utilities.rank_zero")  # what parts say on the first rank goes there too
    levels = [(logger, logger.level) for logger in (*loggers, ours)]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    ours.setLevel(logging.INFO)
    ours.addFilter(_not_advertised)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",
                ".*The number of training batches.*is smaller than the logging interval.*",
                ".*Checkpoint directory .* exists and is not empty.*",
                ".*The dirpath has changed from .*",  # a run that goes on in a folder of its own
                ".*Experiment logs directory .* exists and is not empty.*",
                ".*You defined a `validation_step` but have no `val_dataloader`.*",
                ".*treespec.*deprecated.*",  # Lightning below torch 2.13
                ".*No positive.*val_dataloader.*",
                r".*Found \d+ module\(s\) in eval mode at the start of training.*",  # frozen parts
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        ours.removeFilter(_not_advertised)
        for logger, level in levels:
            logger.setLevel(level)


def _not_advertised(record: logging.LogRecord) -> bool:
    import lightning

    return record.levelno >= logging.WARNING or not Path(record.pathname).is_relative_to(
        Path(lightning.__file__).parent
    )
