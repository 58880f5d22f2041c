"""Features by key, in memory or in a folder that survives runs and crashes."""

from __future__ import annotations

import os
import struct
import uuid
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["FeatureStore"]

_HEADER = struct.Struct("<16sII")  # key, frames, width
KEY_BYTES = 16
_FORMATS = {torch.float16: "<f2", torch.float32: "<f4"}


class FeatureStore:
    """Features ``(T, D)`` under 16-byte keys.

    Without a folder they stay in memory. With one they are appended to files and read back from there when asked
    for: a record is a header (key, T, D) and the numbers. Every process writes a file of its own, and a record that
    a crash cut short is left out when the folder is opened again, so nothing needs locking or repair.

    Args:
        folder: Where to keep the files; ``None`` keeps everything in memory.
        dtype: How they are kept: float16, or float32 for numbers that must stay as they are. A folder holds one type.
    """

    def __init__(self, folder: Path | None = None, dtype: torch.dtype = torch.float16) -> None:
        self.folder, self.dtype = folder, dtype
        self._numbers = _FORMATS[dtype]
        self._memory: dict[bytes, Tensor] = {}
        self._places: dict[bytes, tuple[Path, int, int, int]] = {}  # file, offset, frames, width
        self._own: Path | None = None
        if folder is not None:
            for file in sorted(folder.glob("*.features")):
                self._places |= _index(file, dtype.itemsize)

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def __contains__(self, key: bytes) -> bool:
        return key in self._memory or key in self._places

    def __getitem__(self, key: bytes) -> Tensor:
        """Features ``(T, D)`` of type ``dtype`` on the CPU."""
        if self.folder is None:
            return self._memory[key]
        file, offset, frames, width = self._places[key]
        with file.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(self.dtype.itemsize * frames * width)
        return torch.from_numpy(np.frombuffer(bytearray(data), self._numbers).reshape(frames, width))

    def __setitem__(self, key: bytes, features: Tensor) -> None:
        """Keep features ``(T, D)``; they are on disk when this returns."""
        features = features.detach().to("cpu", self.dtype).contiguous()
        if self.folder is None:
            self._memory[key] = features.clone()
            return
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}.features"
        frames, width = features.shape
        with self._own.open("ab") as stream:
            offset = stream.tell() + _HEADER.size
            numbers = features.numpy().astype(self._numbers, copy=False).tobytes()
            stream.write(_HEADER.pack(key, frames, width) + numbers)
        self._places[key] = (self._own, offset, frames, width)


def _index(file: Path, number_bytes: int) -> dict[bytes, tuple[Path, int, int, int]]:
    """Where the whole records of a file are."""
    places = {}
    size = file.stat().st_size
    with file.open("rb") as stream:
        while len(header := stream.read(_HEADER.size)) == _HEADER.size:
            key, frames, width = _HEADER.unpack(header)
            offset = stream.tell()
            if offset + number_bytes * frames * width > size:
                break  # the run that wrote it was stopped here
            places[key] = (file, offset, frames, width)
            stream.seek(number_bytes * frames * width, os.SEEK_CUR)
    return places
