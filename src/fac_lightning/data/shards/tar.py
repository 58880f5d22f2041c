"""Members of tars: written so that their places are known, found again by one pass over the headers."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from fac_lightning.data.errors import BadData
from fac_lightning.data.shards.index import FieldIndex

__all__ = ["MAX_MEMBER_BYTES", "Member", "TarField", "read_members", "survey_tar"]

MAX_MEMBER_BYTES = 256 * 2**20  # of one recording; a larger one is refused before anything is read


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


@dataclass(frozen=True)
class Member:
    """One file of a tar."""

    name: str
    offset: int  # of its data
    size: int


def read_members(file: BinaryIO, where: str, size: int) -> Iterator[Member]:
    """Files of a tar by its headers alone; data are passed over.

    Args:
        file: The tar; must be able to seek.
        where: Its name, for messages.
        size: Its bytes.

    Raises:
        BadData: It is damaged, or a member is no plain file, too large, or cut off.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if not info.isreg() or info.size > MAX_MEMBER_BYTES:
                    what = f"{info.size} bytes" if info.isreg() else f"a member of tar type {info.type!r}"
                    raise BadData(
                        "FAC-D13",
                        f"member {info.name!r} that is not taken",
                        where,
                        what,
                        f"a plain file of at most {MAX_MEMBER_BYTES} bytes",
                        "Write the shard again",
                    )
                if info.offset_data + info.size > size:
                    raise _cut_off(where, f"{size} bytes, member {info.name!r} ends at {info.offset_data + info.size}")
                yield Member(info.name, info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise _cut_off(where, error) from error


def survey_tar(file: BinaryIO, where: str, size: int, ids: Sequence[str]) -> FieldIndex:
    """Index of a tar that comes without one, held against the ids of the manifest.

    Raises:
        BadData: It has another number of items than the manifest, other ids, or another order (``FAC-D11``,
            ``FAC-D12``); or a member is not taken (``FAC-D13``).
    """
    members = list(read_members(file, where, size))
    data, metas = members[0::2], members[1::2]
    if len(members) % 2 or len(data) != len(ids):
        raise BadData(
            "FAC-D11",
            "tar that does not go with its manifest",
            where,
            f"{len(members) / 2:g} items for {len(ids)} dialogues",
            "one item for each dialogue",
            "Write the shard again, or fetch it again",
        )
    for number, (one, meta, name) in enumerate(zip(data, metas, ids, strict=True)):
        found, of = PurePosixPath(one.name).with_suffix(""), PurePosixPath(meta.name).with_suffix("")
        if str(found) != name or str(of) != name:
            raise BadData(
                "FAC-D12",
                "tar in another order than its manifest",
                f"{where}, item {number}",
                f"{one.name!r} with {meta.name!r}",
                f"the data of dialogue {name!r}",
                "Write the shard again",
            )
    offsets, sizes = [one.offset for one in data], [one.size for one in data]
    for i, one in enumerate(data):
        if one.name.endswith(".nodata"):
            offsets[i], sizes[i] = 0, -1
    dtypes: dict[str, None] = {}
    columns: dict[int, None] = {}
    for i, one in enumerate(data):
        if one.name.endswith(".npy"):
            file.seek(one.offset)
            shape, dtype, header = _npy_header(file, f"{where}, {one.name}")
            dtypes[dtype.str] = columns[shape[1] if len(shape) == 2 else 1] = None
            offsets[i], sizes[i] = one.offset + header, one.size - header
    if len(dtypes) > 1 or len(columns) > 1:
        raise BadData(
            "FAC-D14",
            "arrays of several kinds",
            where,
            f"types {', '.join(dtypes)}, columns {', '.join(map(str, columns))}",
            "one type and one number of columns in a shard",
            "Write the shard again",
        )
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
        raise BadData(
            "FAC-D14", "array that is not taken", where, error, "numbers (T,) or (T, D) in C order", "Write it again"
        ) from error
    return shape, dtype, file.tell() - start


def _cut_off(where: str, value: object) -> BadData:
    return BadData(
        "FAC-D11",
        "tar that is cut off or damaged",
        where,
        value,
        "a whole tar",
        "Write the shard again, or fetch it again",
    )
