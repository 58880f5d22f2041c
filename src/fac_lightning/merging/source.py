"""Where tensors come from: a state dict, or safetensors files of which a piece at a time is read."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fac_lightning.weights import CheckpointError

__all__ = ["DTYPES", "FileSource", "StateSource", "TensorSource", "TensorSpec"]

#: Names of the format (https://huggingface.co/docs/safetensors) -> types.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}

LONGEST_HEADER = 100_000_000  # bytes; the limit of the reference reader


@dataclass(frozen=True)
class TensorSpec:
    """Type and shape of a tensor that is not looked at yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


class TensorSource(ABC):
    """Named tensors that are read piece by piece."""

    specs: dict[str, TensorSpec]
    aliases: dict[str, str]  # other name of a tensor -> the name it is stored under
    device: torch.device  # where pieces are

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start .. stop`` of a tensor laid flat ``(stop - start,)``; not to be changed.

        What one call gave may be overwritten by the next call on this source.
        """

    @property
    def label(self) -> str:
        """What messages call it."""
        return type(self).__name__


class StateSource(TensorSource):
    """A state dict.

    Args:
        state: Name -> tensor, on any device.
        label: What messages call it.
    """

    def __init__(self, state: Mapping[str, Tensor], label: str = "the state dict") -> None:
        self.specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
        self.aliases = {}
        self.device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        self._state, self._label = state, label

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start .. stop`` of a tensor laid flat."""
        return self._state[name].detach().reshape(-1)[start:stop]

    @property
    def label(self) -> str:
        """What messages call it."""
        return self._label


@dataclass(frozen=True)
class _Place:
    file: str
    offset: int  # in bytes, from the beginning of the file


class FileSource(TensorSource):
    """Safetensors files: one file, or a folder with ``model.safetensors`` or with shards and their index.

    Pieces are read into one buffer that is used again, so memory is that of the largest piece, also as the operating
    system counts it.

    Args:
        path: File or folder.

    Raises:
        FileNotFoundError: There is nothing.
        CheckpointError: What is there is damaged, incomplete or no safetensors.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.device = Path(path), torch.device("cpu")
        self.files, owners = _files(self.path)
        self.specs, self.aliases = {}, {}
        self.metadata: dict[str, str] = {}  # strings of the headers
        self._places: dict[str, _Place] = {}
        for file in self.files:
            self._take_in(file, owners)
        missing = sorted(owners.keys() - self.specs.keys())
        if missing:
            raise CheckpointError(
                f"{self.path}: the index names {missing[0]}, but {owners[missing[0]]} has no such tensor"
            )
        if not self.specs:
            raise CheckpointError(f"{self.path} holds no tensors")
        self._open: dict[str, BinaryIO] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def _take_in(self, file: Path, owners: Mapping[str, str]) -> None:
        header, begin = _read_header(file)
        metadata = header.pop("__metadata__", {})
        self.metadata |= metadata
        for name, entry in header.items():
            if owners and owners.get(name) != file.name:
                continue  # a shard may hold more than the index takes from it
            if name in self.specs:
                raise CheckpointError(f"{self.path} holds {name} twice, in {self._places[name].file} and {file.name}")
            spec = _spec(file, name, entry)
            self.specs[name] = spec
            self._places[name] = _Place(file.name, begin + int(entry["data_offsets"][0]))
        # what `safetensors.torch.save_model` writes for tensors that share memory
        self.aliases |= {other: name for other, name in metadata.items() if name in header and other not in header}

    @property
    def label(self) -> str:
        """What messages call it."""
        return str(self.path)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.path if self.path.is_dir() else self.path.parent

    def shards(self) -> dict[str, list[str]]:
        """File name -> its tensors, in the order in which they lie there."""
        places = sorted(self._places.items(), key=lambda item: (item[1].file, item[1].offset))
        found: dict[str, list[str]] = {file.name: [] for file in self.files}
        for name, place in places:
            found[place.file].append(name)
        return found

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start .. stop`` of a tensor laid flat; overwritten by the next call."""
        spec, place = self.specs[name], self._places[name]
        size = spec.dtype.itemsize
        wanted = (stop - start) * size
        if self._buffer.numel() < wanted:
            self._buffer = torch.empty(wanted, dtype=torch.uint8)
        piece = self._buffer[:wanted]
        if place.file not in self._open:
            self._open[place.file] = (self.folder / place.file).open("rb", buffering=0)
        file, view, done = self._open[place.file], memoryview(piece.numpy()), 0  # type: ignore[arg-type]
        file.seek(place.offset + start * size)
        while done < wanted:
            got = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise CheckpointError(f"{self.folder / place.file} ends within {name}: it is cut short")
            done += got
        return piece.view(spec.dtype)

    def close(self) -> None:
        """Close the files and give the buffer back; reading opens them anew."""
        for file in self._open.values():
            file.close()
        self._open = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _files(path: Path) -> tuple[list[Path], dict[str, str]]:
    """Files to read, and tensor -> file name where an index says so."""
    if path.is_file():
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path} is no safetensors file; give one, or a folder that holds one")
        return [path], {}
    if not path.is_dir():
        raise FileNotFoundError(
            f"there are no weights at {path}: give a safetensors file, a run folder, or a local model folder "
            "(a model of a hub must be downloaded first)"
        )
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) == 1:
        return _indexed(indices[0])
    single = path / "model.safetensors"
    if single.is_file():
        return [single], {}
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found, {}
    if found:
        raise CheckpointError(
            f"{path} holds {len(found)} safetensors files and no index that says which belong together"
        )
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise CheckpointError(f"{path} holds {pickles[0]}, which is no safetensors file; save the model as safetensors")
    raise FileNotFoundError(
        f"there are no weights at {path / 'model.safetensors'}: has the run ended? It writes them last"
    )


def _indexed(index: Path) -> tuple[list[Path], dict[str, str]]:
    try:
        owners: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is no index of safetensors files ({type(error).__name__}: {error})") from None
    files = [index.parent / name for name in sorted(set(owners.values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(
            f"{index.parent} is incomplete: {', '.join(absent[:3])} named by {index.name} is not there"
        )
    return files, owners


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """Entries of a safetensors file, and where its data begin."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(LONGEST_HEADER, size - 8):
            raise CheckpointError(f"{file} is no safetensors file or cut short: its header cannot be {length} bytes")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file} is no safetensors file: its header cannot be read ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{file} is no safetensors file: its header is no mapping")
    try:
        end = max(
            (int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (KeyError, TypeError, IndexError, ValueError):
        raise CheckpointError(f"{file} is no safetensors file: an entry of its header has no data_offsets") from None
    if 8 + length + end != size:
        raise CheckpointError(
            f"{file} is cut short or damaged: it has {size} bytes, its header says {8 + length + end}"
        )
    return header, 8 + length


def _spec(file: Path, name: str, entry: Mapping[str, Any]) -> TensorSpec:
    kind = str(entry.get("dtype"))
    if kind not in DTYPES:
        raise CheckpointError(
            f"{file}: {name} is stored as {kind}, which is a quantised type; merge the weights from before quantisation"
        )
    spec = TensorSpec(DTYPES[kind], tuple(int(size) for size in entry["shape"]))
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if end - begin != spec.nbytes:
        raise CheckpointError(f"{file} is damaged: {name} is {spec} but has {end - begin} bytes")
    return spec


def pieces(numel: int, most: int) -> Iterator[tuple[int, int]]:
    """``start, stop`` of pieces of at most ``most`` elements."""
    for start in range(0, numel, max(most, 1)):
        yield start, min(start + most, numel)
