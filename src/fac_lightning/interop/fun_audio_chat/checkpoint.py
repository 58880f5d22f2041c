"""Reading and writing the released checkpoint, tensor by tensor.

A model is built without memory; each tensor then goes from its file straight to its place on the device. What does not
fit is told tensor by tensor, and nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.interop.fun_audio_chat.names import ALIASES, Place, places, released_name
from fac_lightning.merging.source import FileSource, TensorSpec
from fac_lightning.merging.writer import StreamedWriter
from fac_lightning.weights import CheckpointError

__all__ = ["Coverage", "Layout", "compare", "fill", "read_config", "state_shapes", "write_weights"]

CONFIG = "config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # the released shards' size


@dataclass(frozen=True)
class Coverage:
    """What became of every tensor."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()  # the model has it, the checkpoint does not
    unexpected: tuple[str, ...] = ()  # the checkpoint has it, the model does not
    mismatched: tuple[str, ...] = ()  # "name (4, 8) in the file, (4, 16) in the model"

    @property
    def complete(self) -> bool:
        """Everything was loaded and nothing was left."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        rest = ((self.missing, "missing"), (self.unexpected, "unexpected"), (self.mismatched, "of another size"))
        found = [f"{len(names)} {what}: {_some(names)}" for names, what in rest if names]
        return "; ".join([f"{len(self.loaded)} tensors loaded", *found])


@dataclass(frozen=True)
class Layout:
    """How a checkpoint's tensors lie in files: what an export repeats."""

    files: dict[str, str] = field(default_factory=dict)  # tensor -> file name; empty for one that was never a file
    indexed: bool = False
    metadata: dict[str, str] = field(default_factory=lambda: {"format": "pt"})
    dtype: str | None = None  # the one floating type of its tensors; None for several, or no file

    @classmethod
    def of(cls, source: FileSource) -> Layout:
        """Of a checkpoint's files."""
        kinds = {spec.dtype for spec in source.specs.values() if spec.dtype.is_floating_point}
        return cls(
            {name: file for file, names in source.shards().items() for name in names},
            len(source.files) > 1,
            dict(source.metadata),
            str(kinds.pop()).removeprefix("torch.") if len(kinds) == 1 else None,
        )


def read_config(folder: Path) -> tuple[dict[str, Any], str]:
    """``config.json`` and its text.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    file = folder / CONFIG
    try:
        text = file.read_text(encoding="utf-8")
        config = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is no checkpoint: it has no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} holds a {type(config).__name__} where a JSON object is due")
    return config, text


def state_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and sizes of a model's tensors, tied ones under each of their names."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fill(model: nn.Module, source: FileSource, device: torch.device, dtype: torch.dtype | None) -> Coverage:
    """Give a model that was built on the meta device its tensors.

    Args:
        model: With the names of ours.
        source: The checkpoint's files.
        device: Where tensors go; ``meta`` reads them and keeps none.
        dtype: Of floating tensors; as stored when None.

    Raises:
        CheckpointError: A tensor is missing, unexpected or of another size; or tied tensors differ in the file.
    """
    wanted = places(state_shapes(model))
    stored = _canonical(source, wanted)
    mismatched = tuple(
        f"{name} {source.specs[held].shape} in the file, {wanted[name].shape} in the model"
        for name, held in stored.items()
        if name in wanted and source.specs[held].shape != wanted[name].shape
    )
    coverage = Coverage(
        loaded=tuple(sorted(name for name in stored if name in wanted)),
        missing=tuple(sorted(wanted.keys() - stored.keys())),
        unexpected=tuple(sorted(stored.keys() - wanted.keys())),
        mismatched=mismatched,
    )
    if not coverage.complete:
        raise CheckpointError(f"{source.label} does not fit its {CONFIG}: {coverage}")
    state: dict[str, Tensor] = {}
    targets = model.state_dict()
    released = {held: name for name, held in stored.items()}  # without second copies of tied tensors
    for held in (name for names in source.shards().values() for name in names if name in released):
        place, spec = wanted[released[held]], source.specs[held]
        kind = dtype if dtype is not None and spec.dtype.is_floating_point else spec.dtype
        tensor = source.read(held, 0, spec.numel).view(spec.shape)
        if place.expert is None:
            state[place.name] = torch.empty(spec.shape, dtype=kind, device=device).copy_(tensor)
        else:
            if place.name not in state:
                state[place.name] = torch.empty(targets[place.name].shape, dtype=kind, device=device)
            place.of(state[place.name]).copy_(tensor)
    for name in targets.keys() - state.keys():  # other names of tied tensors
        state[name] = state[wanted[released_name(name)].name]
    model.load_state_dict(state, assign=True)
    return coverage


def _canonical(source: FileSource, wanted: Mapping[str, Place]) -> dict[str, str]:
    """Released name -> name under which the file holds it; of tied tensors either name will do, or both."""
    found = {name: name for name in source.specs if name not in ALIASES or name in wanted}
    for name in source.specs.keys() - found.keys():
        kept = ALIASES[name]
        if kept not in found:
            found[kept] = name
        elif not _equal(source, kept, name):
            raise CheckpointError(
                f"{source.label} holds {kept} and {name}, which the model shares, with different values; "
                "it was not written by the released model"
            )
    return found


def _equal(source: FileSource, left: str, right: str) -> bool:
    if source.specs[left] != source.specs[right]:
        return False
    size = source.specs[left].numel
    one = source.read(left, 0, size).clone()  # what is read is overwritten by the next call
    return torch.equal(one, source.read(right, 0, size))


def write_weights(folder: Path, state: Mapping[str, Tensor], layout: Layout, dtype: torch.dtype | None = None) -> None:
    """Write the released names of our tensors, in the files of ``layout``.

    Args:
        folder: Exists.
        state: Our names; tied tensors may come under several.
        layout: Where tensors lay; those that it does not know come in shards of 5 GB.
        dtype: Of floating tensors; as they are when None.
    """
    tensors: dict[str, tuple[Place, TensorSpec]] = {}
    for name, place in places({name: tuple(tensor.shape) for name, tensor in state.items()}).items():
        kind = state[place.name].dtype
        kind = dtype if dtype is not None and kind.is_floating_point else kind
        tensors[_stored_name(name, layout)] = (place, TensorSpec(kind, place.shape))
    files = _files(tensors, layout)
    for file, names in files.items():
        specs = {name: tensors[name][1] for name in names}
        with StreamedWriter(folder / file, specs, layout.metadata) as writer:
            for name in writer.order:
                place, spec = tensors[name]
                writer.write(place.of(state[place.name]).to("cpu", spec.dtype))
    if layout.indexed or len(files) > 1:
        total = sum(spec.nbytes for _, spec in tensors.values())
        owners = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _stored_name(name: str, layout: Layout) -> str:
    """The one of a tied tensor's names under which the checkpoint kept it."""
    other = next((alias for alias, kept in ALIASES.items() if kept == name), None)
    return other if other in layout.files and name not in layout.files else name


def _files(tensors: Mapping[str, tuple[Place, TensorSpec]], layout: Layout) -> dict[str, list[str]]:
    """File name -> its tensors."""
    if layout.files.keys() >= tensors.keys():
        found: dict[str, list[str]] = {}
        for name in tensors:
            found.setdefault(layout.files[name], []).append(name)
        return found
    groups: list[list[str]] = [[]]
    size = 0
    for name, (_, spec) in tensors.items():
        if groups[-1] and size + spec.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.nbytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def _some(names: Iterable[str], most: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def compare(left: str | Path, right: str | Path) -> tuple[str, ...]:
    """Names of tensors whose bytes differ between two checkpoints, or that only one of them has."""
    with FileSource(left) as one, FileSource(right) as other:
        differing = set(one.specs.keys() ^ other.specs.keys())
        for name in one.specs.keys() & other.specs.keys():
            spec = one.specs[name]
            same = spec == other.specs[name] and torch.equal(
                one.read(name, 0, spec.numel).view(torch.uint8), other.read(name, 0, spec.numel).view(torch.uint8)
            )
            if not same:
                differing.add(name)
    return tuple(sorted(differing))
