"""Where pretrained encoders come from, and towers read out of the checkpoints of larger models, without the rest."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fac_lightning.weights import CheckpointError

__all__ = ["cache_first", "fill_tower", "read_config"]

Found_ = TypeVar("Found_")

_CONFIG, _INDEX, _WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"


def cache_first(name: str, load: Callable[[bool], Found_]) -> Found_:
    """What ``load(local_files_only)`` gives: of a folder or the hub's cache, and of the hub only where they lack it.

    Args:
        name: Folder or hub id. A folder is asked for nowhere else.
        load: Raises ``OSError`` where something is missing.

    Raises:
        CheckpointError: The name is a path, and there is no folder.
        OSError: It is nowhere.
    """
    if Path(name).is_dir():
        return load(True)
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise CheckpointError(f"there is no folder {name!r}; give a hub id, or a folder that save_pretrained wrote")
    try:
        return load(True)
    except OSError:  # not in the cache; no network was asked
        pass
    try:
        return load(False)
    except OSError as error:
        raise OSError(
            f"{name!r} is no folder, not in the hub's cache, and the hub did not give it: check the name, or fetch it "
            "where there is a network and give the folder"
        ) from error


def read_config(name: str) -> dict[str, Any]:
    """``config.json`` of a folder or a hub id.

    Raises:
        OSError: It is nowhere.
    """
    file = cache_first(name, lambda local: _file(name, _CONFIG, local))
    entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return entries


def fill_tower(tower: nn.Module, name: str, prefixes: Sequence[str]) -> None:
    """Give ``tower`` its weights, in float32; nothing else is read, and of a hub id only its files are fetched.

    Args:
        tower: A network whose own weights, which may be on the meta device, are replaced.
        name: Folder or hub id of a checkpoint in safetensors files.
        prefixes: What names of the tower's tensors may begin with there; the first that is found counts.

    Raises:
        CheckpointError: The checkpoint holds nothing under any prefix, or not what the tower needs.
        OSError: There is no such checkpoint.
    """
    weights = cache_first(name, lambda local: _read_tower(name, prefixes, local))
    try:
        tower.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        raise CheckpointError(f"{name} does not hold what its own {_CONFIG} describes: {reasons}") from error


def _read_tower(name: str, prefixes: Sequence[str], local: bool) -> dict[str, Tensor]:
    """Tensors of one tower by their names without the prefix."""
    from huggingface_hub.errors import EntryNotFoundError
    from safetensors import safe_open

    try:
        places: dict[str, str] = json.loads(_file(name, _INDEX, local).read_text(encoding="utf-8"))["weight_map"]
    except (FileNotFoundError, EntryNotFoundError):
        with safe_open(_file(name, _WEIGHTS, local), "pt") as tensors:
            places = dict.fromkeys(tensors.keys(), _WEIGHTS)
    prefix = next((start for start in prefixes if any(key.startswith(start) for key in places)), None)
    if prefix is None:
        raise CheckpointError(
            f"{name} holds no tensor {' or '.join(f'{start}*' for start in prefixes)}, but "
            f"{', '.join(sorted(places)[:2]) or 'nothing'}; it is another model"
        )
    files: dict[str, list[str]] = {}
    for key, file in places.items():
        if key.startswith(prefix):
            files.setdefault(file, []).append(key)
    found: dict[str, Tensor] = {}
    for file, keys in files.items():
        with safe_open(_file(name, file, local), "pt") as tensors:
            found |= {key.removeprefix(prefix): tensors.get_tensor(key).to(torch.float32) for key in keys}
    return found


def _file(name: str, file: str, local: bool) -> Path:
    """A file of a folder, or of a hub id, then out of the cache if ``local``."""
    if Path(name).is_dir():
        if not (path := Path(name) / file).is_file():
            raise FileNotFoundError(f"{name} has no {file}; give the folder of a whole checkpoint")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(name, file, local_files_only=local))
    except HFValidationError as error:
        raise OSError(f"{name!r} is no folder, and cannot be a hub id") from error
