"""Members of tars: written so that their places are known, or found by one pass over the headers."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.shar import check_ids, member_pairs
from fac_lightning.data.shards.index import FieldIndex

__all__ = ["TarField", "survey_tar"]


class TarField:
    """One field of a shard under construction.

    A member is followed by its lhotse manifest, ``<id>.json``; a dialogue without the field has an empty
    ``<id>.nodata`` and ``<id>.nometa``. Headers hold no time and no user, so equal data give an equal file.

    Args:
        path: Is written anew.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.blake2b(digest_size=8)
        self._tar = tarfile.open(fileobj=_Hashing(self._file, self._hash), mode="w|")  # noqa: SIM115
        self.offsets: list[int] = []
        self.sizes: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tar.close()
        self._file.close()

    def add(self, name: str, suffix: str, data: bytes, meta: str, header: int = 0) -> None:
        """Append a member and its manifest.

        Args:
            name: The dialogue's id.
            suffix: Kind of data, such as ``flac``.
            data: Bytes of the member.
            meta: Its lhotse manifest, JSON.
            header: Bytes at the beginning of ``data`` that the index leaves out.
        """
        start = self._add(f"{name}.{suffix}", data)
        self._add(f"{name}.json", meta.encode() + b"\n")
        self.offsets.append(start + header)
        self.sizes.append(len(data) - header)

    def skip(self, name: str) -> None:
        """Say that a dialogue has no such field."""
        self._add(f"{name}.nodata", b"")
        self._add(f"{name}.nometa", b"")
        self.offsets.append(0)
        self.sizes.append(-1)

    def finish(self, dtype: str = "", columns: int = 0) -> FieldIndex:
        """Close the tar; where its members are."""
        self._tar.close()
        size = self._file.tell()
        self._file.close()
        return FieldIndex(size, self.offsets, self.sizes, dtype, columns, self._hash.hexdigest())

    def _add(self, name: str, data: bytes) -> int:
        """Append a file; where its data begin."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))
        return int(self._tar.offset) - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class _Hashing(io.RawIOBase):
    """Passes on what is written and remembers its hash."""

    def __init__(self, file: BinaryIO, digest: hashlib.blake2b) -> None:
        self.file, self.digest = file, digest

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write and hash."""
        self.digest.update(data)
        return self.file.write(data)


def survey_tar(
    file: BinaryIO, where: str, size: int, ids: Sequence[str], limits: IntakeLimits | None = None
) -> FieldIndex:
    """Index of a tar that comes without one, by one pass over its headers, held against the ids of the manifest.

    Args:
        file: The tar; must be able to seek.
        where: Its name, for messages.
        size: Its bytes.
        ids: Of the manifest, in order.
        limits: Of members; the default when None.

    Raises:
        BadData: It is cut off or has too few items (``FAC-D11``), other ids or another order (``FAC-D12``), a member
            that is not taken (``FAC-D13``), or arrays of several kinds (``FAC-D14``).
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            items = list(member_pairs(tar, where, limits or IntakeLimits()))
    except (tarfile.TarError, EOFError) as error:
        raise bad_data("FAC-D11", where, f"a file that is not read as tar ({error})") from error
    if items and (end := items[-1].meta.offset_data + items[-1].meta.size) > size:
        raise bad_data("FAC-D11", where, f"{size} bytes where its last member ends at {end}")
    if (problem := check_ids(ids, [item.id for item in items], where)) is not None:
        raise problem
    data = [item.data for item in items]
    offsets = [0 if item.empty else item.data.offset_data for item in items]
    sizes = [-1 if item.empty else item.data.size for item in items]
    dtypes: dict[str, None] = {}
    columns: dict[int, None] = {}
    for i, one in enumerate(data):
        if one.name.endswith(".npy"):
            file.seek(one.offset_data)
            shape, dtype, header = _npy_header(file, f"{where}, {one.name}")
            dtypes[dtype.str] = columns[shape[1] if len(shape) == 2 else 1] = None
            offsets[i], sizes[i] = offsets[i] + header, sizes[i] - header
    if len(dtypes) > 1 or len(columns) > 1:
        told = f"types {', '.join(dtypes)}, columns {', '.join(map(str, columns))}"
        raise bad_data("FAC-D14", where, told, "one type and one number of columns", what="arrays of several kinds")
    return FieldIndex(size, offsets, sizes, next(iter(dtypes), ""), next(iter(columns), 0))


def _npy_header(file: BinaryIO, where: str) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Shape, type and bytes of the header of an npy file."""
    start = file.tell()
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if fortran or dtype.hasobject or len(shape) not in (1, 2):
            raise ValueError(f"shape {shape} of type {dtype}, Fortran order: {fortran}")
    except ValueError as error:
        raise bad_data(
            "FAC-D14", where, str(error), "numbers (T,) or (T, D) in C order", what="array of a kind that is not taken"
        ) from error
    return shape, dtype, file.tell() - start
