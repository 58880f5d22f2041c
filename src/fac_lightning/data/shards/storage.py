"""Folders on a disk or behind an fsspec URL: what is there, a whole file, a piece of a file."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

__all__ = ["LocalFolder", "RemoteFolder", "Storage", "is_url", "open_storage"]

T_ = TypeVar("T_")
TRIES = 4  # of a remote read
FIRST_WAIT = 0.5  # seconds before the second try; doubled each time


class Storage(ABC):
    """Files of one folder by name.

    Args:
        where: Path or URL of the folder.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def path(self, name: str) -> str:
        """Full name of a file, for messages."""
        return f"{self.where.rstrip('/')}/{name}"

    @abstractmethod
    def files(self) -> dict[str, int]:
        """Bytes of every file by its name.

        Raises:
            FileNotFoundError: There is no such folder.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A whole file."""

    @abstractmethod
    def read_range(self, name: str, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``; fewer where the file ends."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """A file to go through; the caller closes it."""


class LocalFolder(Storage):
    """A folder of this machine."""

    def files(self) -> dict[str, int]:
        """Bytes of every file by its name."""
        with os.scandir(self.where) as found:
            return {entry.name: entry.stat().st_size for entry in found if entry.is_file()}

    def read(self, name: str) -> bytes:
        """A whole file."""
        return Path(self.where, name).read_bytes()

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``."""
        file = os.open(os.path.join(self.where, name), os.O_RDONLY)
        try:
            return os.pread(file, count, start)
        finally:
            os.close(file)

    def open(self, name: str) -> BinaryIO:
        """A file to go through."""
        return Path(self.where, name).open("rb")


class RemoteFolder(Storage):
    """A folder that fsspec reaches: ``s3://``, ``gs://``, ``hf://``, ``memory://``, or chained, ``filecache::s3://``.

    Each process opens its own connection. A read that fails is tried again ``TRIES`` times in all, later each time.
    """

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Connections do not travel between processes."""
        return {**self.__dict__, "_opened": None}

    def files(self) -> dict[str, int]:
        """Bytes of every file by its name."""
        fs, root = self._system()
        found = [one for one in _again(lambda: fs.ls(root, detail=True)) if one["type"] == "file"]
        sizes = [one["size"] if one["size"] is not None else _size(fs, one["name"]) for one in found]
        return {one["name"].rsplit("/", 1)[-1]: int(size) for one, size in zip(found, sizes, strict=True)}

    def read(self, name: str) -> bytes:
        """A whole file."""
        fs, root = self._system()
        return bytes(_again(lambda: fs.cat_file(f"{root}/{name}")))

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """``count`` bytes from ``start``."""
        fs, root = self._system()
        data = bytes(_again(lambda: fs.cat_file(f"{root}/{name}", start=start, end=start + count)))
        if len(data) > count:
            raise ValueError(
                f"{self.path(name)} gave {len(data)} bytes where {count} were asked for: its server gives whole files "
                "alone. Keep them on this machine as they are read: put filecache:: before the URL"
            )
        return data

    def open(self, name: str) -> BinaryIO:
        """A file to go through."""
        fs, root = self._system()
        opened: BinaryIO = _again(lambda: fs.open(f"{root}/{name}", "rb"))
        return opened

    def _system(self) -> tuple[Any, str]:
        """File system of this process and the folder in it."""
        if self._opened is None or self._opened[0] != os.getpid():
            fs, root = remote_system(self.where)
            self._opened = (os.getpid(), fs, root.rstrip("/"))
        return self._opened[1], self._opened[2]


def _size(fs: Any, path: str) -> int:
    """Bytes of a file of which the listing does not tell them, as on web servers; 0 where nobody knows."""
    size, inside = _again(lambda: fs.info(path))["size"], getattr(fs, "fs", None)
    if size is None and inside is not None:  # a cache looks into the listing alone
        size = _again(lambda: inside.info(path))["size"]
    return int(size or 0)


def is_url(path: str) -> bool:
    """Whether fsspec is to read a path."""
    return "://" in path


def open_storage(path: str) -> Storage:
    """The folder that a path or URL names."""
    return RemoteFolder(path) if is_url(path) else LocalFolder(path)


def remote_system(url: str) -> tuple[Any, str]:
    """File system of a URL, and the path in it.

    Raises:
        ValueError: fsspec is missing, or the package for this kind of URL.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ValueError(f"{url} is read by fsspec, which is not installed: pip install fsspec") from error
    try:
        fs, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened by fsspec ({error})") from error
    return fs, str(root)


def _again(read: Callable[[], T_]) -> T_:
    """What ``read`` gives; networks get a second chance, missing files and refused access do not."""
    wait = FIRST_WAIT
    for left in reversed(range(TRIES)):
        try:
            return read()
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, TimeoutError):
            if not left:
                raise
            time.sleep(wait)
            wait *= 2
    raise AssertionError("unreachable")
