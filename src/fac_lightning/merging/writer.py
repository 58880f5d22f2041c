"""Write a safetensors file tensor by tensor: the header first, then the bytes in order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from fac_lightning.merging.source import DTYPES, TensorSpec

__all__ = ["StreamedWriter"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
PIECE = 1 << 26  # bytes handed to the operating system at a time


class StreamedWriter:
    """A safetensors file whose tensors are handed over in pieces, in the order of ``order``.

    The file appears under its name when the block is left without an error, and not at all otherwise.

    Args:
        path: The file; one that stands there is replaced.
        specs: Name -> type and shape.
        metadata: Strings for the header.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None) -> None:
        self.path, self._draft = path, path.with_name(f".{path.name}.part")
        # wide types first, so that every tensor is aligned; the format's own writer does the same
        self.order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
        header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name in self.order:
            begin, end = end, end + specs[name].nbytes
            header[name] = {
                "dtype": _NAMES[specs[name].dtype],
                "shape": list(specs[name].shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._left = end
        self._file = self._draft.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, piece: Tensor) -> None:
        """The next elements, on the CPU, of the type that is due."""
        view = memoryview(piece.detach().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        for start in range(0, len(view), PIECE):
            self._file.write(view[start : start + PIECE])
        self._left -= len(view)

    def __enter__(self) -> StreamedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is not None:
            self._draft.unlink(missing_ok=True)
            return
        assert self._left == 0, f"{self.path}: {self._left} bytes were not written"
        self._draft.replace(self.path)
