"""From a checked recipe to model, tokenizer, data, task and trainer; and from a run folder back to its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fac_lightning.config import Problem, Recipe, RecipeError, UserError, accepts, instantiate, loads, untrusted

__all__ = [
    "Built",
    "LoadedRun",
    "build",
    "build_model",
    "ensure_forgetful",
    "ensure_tokenizer",
    "load_run",
    "run_folder",
    "without_base_weights",
]


@dataclass(frozen=True)
class Built:
    """Everything that a training needs."""

    model: Any  # what the task trains: a SpeechLM, a Backbone, a tokenizer
    tokenizer: Any  # SpeechTokenizer or None
    data: Any  # LightningDataModule
    task: Any  # LightningModule
    trainer: Any  # lightning.Trainer


@dataclass(frozen=True)
class LoadedRun:
    """A trained run, ready to be talked to or measured."""

    folder: Path
    recipe: Recipe
    model: Any  # weights loaded, in eval mode
    tokenizer: Any  # SpeechTokenizer or None
    text_tokenizer: Any  # transformers tokenizer that knows the chat marks, or None
    data: dict[str, Any]  # the recipe's data node
    reply: Any  # ReplyRule: how spoken replies lay in training


def run_folder(recipe: Recipe) -> Path:
    """Where a training writes: ``trainer.default_root_dir``, else ``runs/<name of the recipe>``."""
    folder = (recipe.tree.get("trainer") or {}).get("default_root_dir")
    return Path(folder) if folder else Path("runs") / Path(recipe.name).stem


def build(recipe: Recipe, callbacks: Sequence[Any] = ()) -> Built:
    """Build what a training recipe names, in this order: model, tokenizer, data, task, trainer.

    Data gets ``tokenizer`` and ``geometry``, the task gets ``model``, each where it takes them.

    Args:
        recipe: Composed and checked.
        callbacks: Put before those of the recipe.

    Raises:
        UserError: A section is missing or a constructor refused its arguments.
    """
    tree = recipe.tree
    needed = {"model": "what is trained", "task": "what a training step is", "data": "what it learns from"}
    problems = [Problem(name, "", (f"is missing: {what}.",)) for name, what in needed.items() if not tree.get(name)]
    if problems:
        raise RecipeError(recipe.name, problems)
    model = build_model(tree["model"])
    tokenizer = instantiate(tree["tokenizer"], "tokenizer") if tree.get("tokenizer") else None
    ensure_tokenizer(model, tokenizer)
    geometry = getattr(model, "geometry", None)
    shared = {"tokenizer": tokenizer, "geometry": geometry}
    data = instantiate(tree["data"], "data", **{name: item for name, item in shared.items() if item is not None})
    ensure_forgetful(model, data)
    task = instantiate(tree["task"], "task", model=model)
    return Built(model, tokenizer, data, task, build_trainer(recipe, callbacks))


def ensure_tokenizer(model: Any, tokenizer: Any) -> None:
    """Refuse a tokenizer that does not go with the model, where the model can say so."""
    if tokenizer is not None and hasattr(model, "check_tokenizer"):
        try:
            model.check_tokenizer(tokenizer)
        except ValueError as error:
            raise UserError(str(error)) from error


def ensure_forgetful(model: Any, data: Any) -> None:
    """Refuse a model that keeps features of all it hears where the data sound otherwise every time."""
    if getattr(data, "augment", None) is not None:
        from fac_lightning.data.augmentation import refuse_remembering

        try:
            refuse_remembering(model)
        except ValueError as error:
            raise UserError(str(error)) from error


def build_model(node: Mapping[str, Any], pretrained: bool = True) -> Any:
    """Build a model node.

    Args:
        node: ``model`` of a recipe.
        pretrained: False when weights follow from a file: the backbone is then not filled with its base weights first.
    """
    if not pretrained:
        node = without_base_weights(node)
    return instantiate(node, "model")


def without_base_weights(node: Mapping[str, Any]) -> dict[str, Any]:
    """A model node whose backbone has its sizes alone."""
    changed = dict(node)
    backbone = node.get("backbone", None)
    if isinstance(backbone, Mapping) and "_target_" in backbone:
        changed["backbone"] = without_base_weights(backbone)
    elif accepts(node, "pretrained") and accepts(node, "vocab_size"):  # the model is a bare backbone
        changed["pretrained"] = False
    return changed


def build_trainer(recipe: Recipe, callbacks: Sequence[Any] = ()) -> Any:
    """The trainer, with what a run keeps by default: a log, a last checkpoint, a progress bar."""
    from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
    from lightning.pytorch.loggers import CSVLogger

    from fac_lightning.callbacks import StepProgress

    node = dict(recipe.tree.get("trainer") or {"_target_": "lightning.Trainer"})
    folder = run_folder(recipe)
    node["default_root_dir"] = str(folder)
    named = node.pop("callbacks", None) or {}
    listed = list(named.items()) if isinstance(named, Mapping) else list(enumerate(named))
    built = [instantiate(item, f"trainer.callbacks.{name}") for name, item in listed if item is not None]
    extra: list[Any] = list(callbacks)
    plain = not node.get("fast_dev_run") and not node.get("barebones")
    if plain and node.get("enable_checkpointing", True) and not any(isinstance(one, ModelCheckpoint) for one in built):
        steps = node.get("max_steps", -1)
        every = 500 if not isinstance(steps, int) or steps < 0 else min(500, max(1, steps // 5))
        extra.append(
            ModelCheckpoint(
                dirpath=folder / "checkpoints",
                filename="last",
                every_n_train_steps=every,
                enable_version_counter=False,
            )
        )
    shows = not node.get("barebones") and node.get("enable_progress_bar", True)
    if shows and not any(isinstance(one, ProgressBar) for one in built):
        extra.append(StepProgress(title=folder.name))
    objects: dict[str, Any] = {"callbacks": [*extra, *built]}
    if plain and "logger" not in node:
        objects["logger"] = CSVLogger(str(folder), name="logs", version="")
    if "enable_model_summary" not in node and accepts(node, "enable_model_summary"):
        node["enable_model_summary"] = False  # the command prints its own
    return instantiate(node, "trainer", **objects)


def load_run(run: str | Path, allow: Sequence[str] = ()) -> LoadedRun:
    """Rebuild the model of a run folder with its trained weights.

    The recipe of a run folder may come from anyone, so it builds only parts of an allow-list, checked before anything
    is imported.

    Args:
        run: Run folder: ``recipe.yaml``, ``model.safetensors``, perhaps ``text_tokenizer/``.
        allow: Further prefixes of dotted paths that may be built, such as ``my_lab.``.

    Raises:
        FileNotFoundError: It is no run folder, or its training has not ended.
        RecipeError: The recipe names something outside the allow-list.
    """
    folder = Path(run)
    file = folder / "recipe.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no recipe.yaml (fac fit writes one)")
    recipe = loads(file.read_text(encoding="utf-8"), str(file))
    tree = recipe.tree
    if not tree.get("model"):
        raise UserError(f"{file} has no model, so there is nothing to load")
    data = dict(tree.get("data") or {})
    nodes = {"model": tree["model"], "tokenizer": tree.get("tokenizer"), "data.reply": data.get("reply")}
    problems = [p for name, node in nodes.items() for p in untrusted(node, allow, name)]
    if problems:
        raise RecipeError(str(file), problems)
    from fac_lightning.callbacks.save_weights import load_weights
    from fac_lightning.replies import reply_rule

    model = build_model(tree["model"], pretrained=False)
    load_weights(model, folder)
    _as_stored(model, folder)
    tokenizer = instantiate(tree["tokenizer"], "tokenizer") if tree.get("tokenizer") else None
    model.eval()
    if tokenizer is not None:
        tokenizer.eval()
    reply = reply_rule(data.get("lead_in", 0), instantiate(data.get("reply"), "data.reply"))
    return LoadedRun(folder, recipe, model, tokenizer, _text_tokenizer(folder, data), data, reply)


def _as_stored(model: Any, folder: Path) -> None:
    """Give every parameter the floating type that it has in the weights file.

    Parts are built in float32, or the backbone in another type for the training's sake; without a trainer's precision
    they must agree, and half the memory will do where no more is stored. A part that keeps to float32 was stored so.
    """
    from fac_lightning.merging import FileSource

    with FileSource(folder) as source:
        kinds = {name: spec.dtype for name, spec in source.specs.items() if spec.dtype.is_floating_point}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # a tied one is stored under one name
        if name in kinds:
            parameter.data = parameter.data.to(kinds[name])  # not the buffers: rotary tables stay exact


def _text_tokenizer(folder: Path, data: Mapping[str, Any]) -> Any:
    from fac_lightning.text_tokenizer import load_text_tokenizer

    own = folder / "text_tokenizer"
    name = own if own.is_dir() else data.get("text_tokenizer")
    return load_text_tokenizer(name) if isinstance(name, str | Path) else None
