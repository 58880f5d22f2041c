"""Numbers of all dialogues of a shard, codes or token ids, as one block."""

from __future__ import annotations

import numpy as np

from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.shards.index import FieldIndex
from fac_lightning.data.shards.storage import Storage

__all__ = ["Numbers"]


class Numbers:
    """Whole numbers ``(T, Q)`` of each dialogue; the tar is read once, whole, when the first are asked for.

    Args:
        storage: Where the tar is.
        tar: Its name; empty where there is none.
        field: What the index says of it; None where there is none.
        rows: Dialogues.
    """

    def __init__(self, storage: Storage, tar: str, field: FieldIndex | None, rows: int) -> None:
        self.storage, self.tar, self.field = storage, tar, field
        self.columns = 0 if field is None else field.columns
        self.counts = [0] * rows  # frames or tokens of each dialogue
        if field is not None and field.dtype:
            width = np.dtype(field.dtype).itemsize * max(1, field.columns)
            self.counts = [max(0, size) // width for size in field.sizes]
        self._ends = np.cumsum(self.counts).tolist()
        self._block: np.ndarray | None = None

    def __getitem__(self, row: int) -> np.ndarray:
        """Numbers ``(T, Q)`` of a dialogue.

        Raises:
            BadData: The tar is not as the index says.
        """
        block, end = self._block if self._block is not None else self.block, self._ends[row]
        return block[end - self.counts[row] : end]

    @property
    def block(self) -> np.ndarray:
        """All numbers ``(T, Q)`` of the shard."""
        if self._block is None:
            self._block = self._read()
        return self._block

    def _read(self) -> np.ndarray:
        field = self.field
        if field is None or not field.dtype:
            return np.zeros((0, max(1, self.columns)), np.uint8)
        data, dtype = self.storage.read(self.tar), np.dtype(field.dtype)
        if len(data) != field.bytes or dtype.kind not in "iu":
            told = f"{len(data)} bytes, numbers of type {dtype}"
            raise bad_data("FAC-D11", self.storage.path(self.tar), told, f"{field.bytes} bytes of whole numbers")
        places = [(o, n) for o, n in zip(field.offsets, field.sizes, strict=True) if n > 0]
        flat = b"".join([data[offset : offset + size] for offset, size in places])
        return np.frombuffer(flat, dtype).reshape(-1, field.columns)
