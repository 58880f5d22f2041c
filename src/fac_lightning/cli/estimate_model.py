"""From a recipe to a model without numbers, and to the same model at other rates; nothing is fetched."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fac_lightning.config import UserError, accepts, instantiate

__all__ = ["at_rate", "build_shapes", "frames_per_second", "freeze", "largest_layer", "offline", "prepare"]

log = logging.getLogger(__name__)

_GROUPED = ("head", "code_adapter", "feature_adapter")  # slots that fold frames into positions


@contextmanager
def offline() -> Iterator[None]:
    """Within it nothing is asked of the model hub."""
    from huggingface_hub import constants

    given, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    advice = logging.getLogger("transformers")
    level = advice.level
    advice.setLevel(logging.ERROR)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = given
        advice.setLevel(level)


def build_shapes(node: Mapping[str, Any]) -> Any:
    """A model node's model without numbers; a ``CachedEncoder`` becomes what it is once every clip was heard.

    Raises:
        UserError: A part could not be built, or an LLM is named that is not here.
    """
    from fac_lightning.encoders import CachedEncoder
    from fac_lightning.estimate import ShapesOnly, StoredFeatures

    _refuse_absent(node, "model")
    with offline(), ShapesOnly():
        model = instantiate(_unfilled(node), "model")
    encoder = getattr(model, "encoder", None)
    if isinstance(encoder, CachedEncoder):
        model.encoder = StoredFeatures(encoder.encoder)
    return model


def prepare(model: Any, task: Mapping[str, Any]) -> None:
    """Freeze what the task freezes, and put the rest in training mode, as tasks do."""
    freeze(model, list(task.get("freeze") or ()))


def freeze(model: Any, patterns: Sequence[str]) -> None:
    """Freeze what patterns mean; all else is in training mode.

    Raises:
        UserError: A pattern means nothing, or nothing is left to train.
    """
    from fac_lightning.patterns import match_names
    from fac_lightning.tasks.optimization import silent_modules

    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = [name for name, _ in model.named_modules()]
    try:
        matched = match_names(patterns, list(parameters), "task.freeze", "parameter", modules)
    except ValueError as error:
        raise UserError(str(error)) from None
    for names in matched.values():
        for name in names:
            parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError(f"task.freeze {list(patterns)} leaves nothing to train; remove a pattern")
    model.train()
    for module in silent_modules(model, patterns):
        module.eval()


def frames_per_second(recipe_tree: Mapping[str, Any], model: Any) -> float:
    """Codes a second: of the model's two sides, which go at one rate; 25 where nothing is heard."""
    encoder, heard = getattr(model, "encoder", None), getattr(model, "feature_adapter", None)
    said = getattr(model, "head", None) or getattr(model, "code_adapter", None)
    if encoder is None or heard is None or said is None:
        return 25.0
    return float(encoder.frame_rate / heard.group_size * said.group_size)


def at_rate(node: Mapping[str, Any], group_size: int, with_head: bool = True) -> dict[str, Any]:
    """A model node whose positions hold ``group_size`` frames; without a head codes are read off the hidden state.

    Raises:
        UserError: A slot does not say how many frames it folds, or not a whole number would come out.
    """
    changed = {name: dict(slot) if isinstance(slot, Mapping) else slot for name, slot in node.items()}
    head = changed.get("head") or {}
    now = head.get("group_size")
    if not isinstance(now, int):
        raise UserError("model.head has no group_size, so its rate cannot be changed")
    for name in _GROUPED:
        slot = changed.get(name)
        if not slot:
            continue
        size = slot.get("group_size")
        if not isinstance(size, int) or size * group_size % now:
            raise UserError(f"model.{name}.group_size = {size} does not go to {group_size} / {now} of itself")
        slot["group_size"] = size * group_size // now
        if isinstance(slot.get("jitter"), int):  # frames, fewer than a group has
            slot["jitter"] = min(slot["jitter"] * group_size // now, slot["group_size"] - 1)
    if not with_head:
        sizes = {name: head[name] for name in ("dim", "codebook_size", "num_codebooks") if name in head}
        changed["head"] = {"_target_": "fac_lightning.heads.ParallelHead", "group_size": group_size, **sizes}
    return changed


def largest_layer(model: Any) -> int:
    """Bytes of the largest block of a stack, or of the largest table: what a sharding of weights gathers at a time."""
    from torch import nn

    blocks = [block for part in model.modules() if isinstance(part, nn.ModuleList) for block in part]
    tables = [p.numel() * p.element_size() for p in model.parameters() if p.ndim == 2]
    stacked = [sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks]
    return int(max([0, *tables, *stacked]))


def _unfilled(node: Any) -> Any:
    """A node in which nothing loads weights."""
    if isinstance(node, Mapping):
        changed = {name: _unfilled(value) for name, value in node.items()}
        if "_target_" in node and accepts(node, "pretrained"):
            changed["pretrained"] = False
        return changed
    return [_unfilled(value) for value in node] if isinstance(node, list) else node


def _refuse_absent(node: Any, key: str) -> None:
    """One line for an LLM that is named and not here."""
    if not isinstance(node, Mapping):
        return
    for name, value in node.items():
        _refuse_absent(value, f"{key}.{name}")
    named = node.get("name")
    if not isinstance(named, str) or "_target_" not in node or not accepts(node, "vocab_size"):
        return
    if not (Path(named) / "config.json").is_file() and not _in_cache(named):
        raise UserError(
            f"{key}.name = {named}: no folder with a config.json, and not in the hub's cache; fac estimate fetches "
            f"nothing. Name a folder, or give the sizes: {key}.name=null '{key}.config={{model_type: qwen3, "
            "vocab_size: 151936, hidden_size: 1024, intermediate_size: 3072, num_hidden_layers: 28, ...}'"
        )


def _in_cache(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if name.count("/") > 1:
        return False
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # no name that the hub could have
        return False
