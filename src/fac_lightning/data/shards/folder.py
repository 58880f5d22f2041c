"""A folder of shards as it lies there: which shards, how many dialogues, where everything is."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.shards.features import FeaturesOf
from fac_lightning.data.shards.index import FieldIndex, ShardIndex
from fac_lightning.data.shards.names import SUMMARY, ShardFiles, find_shards
from fac_lightning.data.shards.records import FEATURES, TEXTS, CodesOf
from fac_lightning.data.shards.storage import LocalFolder, open_storage
from fac_lightning.data.shards.tar import survey_tar
from fac_lightning.data.shards.texts import TextsOf

__all__ = ["ShardFolder", "parse_line"]


class ShardFolder:
    """Shards of one folder, local or behind an fsspec URL; held against what their indices say of them.

    Where somebody else wrote the shards, each is gone through once, tar header by tar header, and the index is kept:
    beside the shard, or under ``$XDG_CACHE_HOME/fac_lightning/shards`` where the folder cannot be written.

    Args:
        path: The folder, or a pattern of its manifests, such as ``shards/cuts.0000*.jsonl.gz``.
        limits: Of the members of tars; the default when None.

    Raises:
        FileNotFoundError: There is no such folder.
        BadData: Files are missing, or are not as they were written.
    """

    def __init__(self, path: str, limits: IntakeLimits | None = None) -> None:
        pattern = "cuts*"
        if path.endswith((".jsonl", ".jsonl.gz")):
            path, _, pattern = path.rpartition("/")
        self.storage, self.limits = open_storage(path or "."), limits or IntakeLimits()
        self.where = self.storage.where
        self.files = self.storage.files()
        self.shards = find_shards(self.where, self.files, pattern)
        self.summary = self._summary() if SUMMARY in self.files else None
        if self.summary is not None:
            self._check_sizes(self.summary)

    def rows(self) -> list[int]:
        """Dialogues of each shard."""
        if self.summary is None:
            return [self.index(i).rows for i in range(len(self.shards))]
        return [int(self.summary["rows"][int(shard.number[1:])]) for shard in self.shards]

    def fingerprint(self) -> str:
        """Name of the content, wherever the folder lies."""
        digest = hashlib.blake2b(digest_size=8)
        for i in range(len(self.shards)):
            index = self.index(i)
            told = {name: one.digest or one.bytes for name, one in sorted(index.fields.items())}
            digest.update(f"{index.rows} {index.digest} {told}\n".encode())
        return digest.hexdigest()

    def codes_of(self) -> CodesOf | None:
        """The tokenizer of the codes, where the folder says it."""
        if self.summary is not None:
            told = self.summary["codes_of"]
            return CodesOf(**told) if told else None
        told = self._told("codes_of", self.shards[:1])
        return CodesOf(str(told["tokenizer"]), float(told["frame_rate"])) if told else None

    def features_of(self) -> FeaturesOf | None:
        """The encoder of the features, where there are some."""
        if FEATURES not in self.shards[0].tars:
            return None
        told = (self.summary or {}).get("features_of") or self._told("features_of", self.shards)
        return FeaturesOf(**told) if told else None

    def texts_of(self) -> TextsOf | None:
        """The text tokenizer of the token ids, where there are some."""
        if TEXTS not in self.shards[0].tars:
            return None
        told = (self.summary or {}).get("texts_of") or self._told("texts_of", self.shards[:1])
        return TextsOf(**told) if told else None

    def lines(self, shard: int) -> list[str]:
        """Lines of a manifest, not yet read as records.

        Raises:
            BadData: The file is cut off.
        """
        return _split(self._text(self.shards[shard]))

    def index(self, shard: int) -> ShardIndex:
        """Where everything is in a shard.

        Raises:
            BadData: The tars are not as the index says, or, without one, do not go with the manifest.
        """
        files = self.shards[shard]
        if files.index in self.files:
            index = ShardIndex.from_json(self.storage.read(files.index), self.storage.path(files.index))
            if self._matches(files, index):
                return index
        kept = self._kept(files)
        if kept.is_file():
            index = ShardIndex.from_json(kept.read_bytes(), str(kept))
            if self._matches(files, index):
                return index
        index = self._survey(files)
        _keep(index, Path(self.where, files.index) if isinstance(self.storage, LocalFolder) else kept, kept)
        return index

    def _matches(self, files: ShardFiles, index: ShardIndex) -> bool:
        """Whether an index is of these files; one that came with them must be."""
        sizes = {name: self.files[file] for name, file in files.tars.items()}
        told = {name: one.bytes for name, one in index.fields.items()}
        for name, one in index.fields.items():
            if one.digest and sizes.get(name) != one.bytes:
                file = self.storage.path(files.tars.get(name, name))
                raise bad_data("FAC-D11", file, f"{sizes.get(name, 0)} bytes", f"{one.bytes} bytes, as it was written")
        return sizes == told

    def _survey(self, files: ShardFiles) -> ShardIndex:
        """Index of a shard that comes without one."""
        ids = [str(record["id"]) for record in self._records(files)]
        fields: dict[str, FieldIndex] = {}
        for name, file in files.tars.items():
            with self.storage.open(file) as tar:
                fields[name] = survey_tar(tar, self.storage.path(file), self.files[file], ids, self.limits)
        return ShardIndex(len(ids), hashlib.blake2b(self._text(files), digest_size=8).hexdigest(), fields)

    def _told(self, name: str, shards: list[ShardFiles]) -> dict[str, Any] | None:
        """What the first dialogue of some shards that says so tells, such as ``codes_of``."""
        records = (record for files in shards for record in self._records(files))
        return next((told for record in records if (told := (record.get("custom") or {}).get(name))), None)

    def _records(self, files: ShardFiles) -> Iterator[dict[str, Any]]:
        """Lines of a manifest as records."""
        where = self.storage.path(files.manifest)
        for number, line in enumerate(_split(self._text(files)), start=1):
            yield parse_line(line, f"{where}, line {number}")

    def _text(self, files: ShardFiles) -> bytes:
        """The manifest of a shard, unpacked."""
        data, where = self.storage.read(files.manifest), self.storage.path(files.manifest)
        try:
            return gzip.decompress(data) if files.manifest.endswith(".gz") else data
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise bad_data("FAC-D03", where, str(error)) from error

    def _summary(self) -> dict[str, Any]:
        """What the writer said at its end."""
        where = self.storage.path(SUMMARY)
        summary: dict[str, Any] = json.loads(self.storage.read(SUMMARY))
        if not summary.get("finished"):
            advice = "Call 'fac data shard' again with the same words: it goes on where it was stopped"
            raise bad_data("FAC-D14", where, "finished: false", "shards that were written to the end", advice)
        return summary

    def _check_sizes(self, summary: dict[str, Any]) -> None:
        """Every file must be there and have its size: one listing tells."""
        for shard in self.shards:
            place = int(shard.number[1:])
            for name, sizes in summary["bytes"].items():
                file = shard.tars.get(name)
                if file is None or self.files[file] != sizes[place]:
                    told = f"no {name}{shard.number}.tar" if file is None else f"{self.files[file]} bytes"
                    where = self.where if file is None else self.storage.path(file)
                    code = "FAC-D14" if file is None else "FAC-D11"
                    raise bad_data(code, where, told, f"{sizes[place]} bytes, as they were written")

    def _kept(self, files: ShardFiles) -> Path:
        """Where the index of a shard is kept that has none and lies where nothing can be written."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fac_lightning" / "shards"
        sizes = [self.files[files.manifest], *(self.files[file] for file in files.tars.values())]
        name = f"{self.storage.path(files.manifest)} {list(files.tars)} {sizes}"
        return home / f"{hashlib.blake2b(name.encode(), digest_size=12).hexdigest()}.json"


def parse_line(line: str, where: str) -> dict[str, Any]:
    """The record of a line.

    Raises:
        BadData: It is none.
    """
    try:
        record: dict[str, Any] = json.loads(line)
        record["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise bad_data("FAC-D15", where, f"{line[:60]!r} ({error})") from error
    return record


def _split(text: bytes) -> list[str]:
    """Lines of a manifest; what is no UTF-8 is told when its line is read."""
    lines = text.decode("utf-8", "replace").split("\n")
    return lines[:-1] if not lines[-1] else lines


def _keep(index: ShardIndex, *places: Path) -> None:
    """Store an index at the first place that takes it; without one it is made anew next time."""
    for place in places:
        draft = place.with_name(f"cuts.{uuid.uuid4().hex[:8]}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(index.to_json(), encoding="utf-8")
            os.replace(draft, place)
            return
        except OSError:
            continue
