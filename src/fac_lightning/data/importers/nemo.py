"""NeMo's manifests, plain and tarred, become dialogues folders."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.data.dialogue import Dialogue
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import Pending
from fac_lightning.data.importers.json_records import first_record, read_json_records
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.sharded_names import expand_shards
from fac_lightning.data.importers.sound import read_sound
from fac_lightning.data.importers.speech_and_text import SpeechAndText
from fac_lightning.data.importers.told import bad_field, missing_file

__all__ = ["NemoImport"]

PIECE = re.compile(r"(?P<stem>.+)-sub\d+(?P<ending>\.\w+)?")  # of a file that a tar holds once
NUMBERED = re.compile(r"_(\d+)[^/]*\.(?:tar|jsonl?)(?:\.gz)?$")
TOLERANCE = 0.04  # seconds by which a recording and its manifest may differ: one speech token
LARGEST = 256 * 2**20  # bytes of a member of a tar file


class NemoImport(SpeechAndText):
    """Job: NeMo's manifests become a dialogues folder.

    A line is ``{"audio_filepath": ..., "duration": ..., "text": ...}``, with ``offset`` for a piece of a longer
    recording; other values (``lang``, ``speaker`` ...) are kept with the dialogue. A tarred manifest has ``shard_id``,
    or is one file a shard; its recordings are members of ``audio_0.tar`` and so on. Duplex cuts are lhotse's:
    ``LhotseImport`` takes them.

    Args:
        source: Manifest, NeMo's pattern for several (``manifest__OP_0..7_CL_.json``), or a folder that has
            ``tarred_audio_manifest.json``.
        out: Dialogues folder.
        tars: Tar files as NeMo writes them, ``audio__OP_0..127_CL_.tar`` or ``audio_{0..127}.tar``, below the root;
            the ``audio_*.tar`` beside the manifest when None and it is tarred.
        role: Who speaks: "user" for recognition (mode ASR), "assistant" for synthesis (mode TTS).
        text_field: Where what is said stands.
        answer_field: Where an answer in text stands, which makes a second turn.
        options: Rules; the plain ones when None.
    """

    def __init__(
        self,
        source: str,
        out: str,
        tars: str | None = None,
        role: str = "user",
        text_field: str = "text",
        answer_field: str | None = None,
        options: ImportOptions | None = None,
    ) -> None:
        super().__init__(source, out, role, options)
        if answer_field is not None and role != "user":
            raise ValueError("answer_field is what the assistant answers, so the role of the recording must be 'user'")
        self.tars, self.text_field, self.answer_field = tars, text_field, answer_field

    def check_source(self) -> None:
        """Refuse manifests that are not there, or lack the fields."""
        for file in self._manifests():
            first = first_record(file)
            if first is None:
                continue
            due = ["audio_filepath", self.text_field, *([self.answer_field] if self.answer_field else [])]
            if missing := [name for name in due if name not in first]:
                advice = "Say where the text stands: --set text_field=NAME (and answer_field)."
                there = f"fields {', '.join(map(repr, first))}"
                rule = f"also {', '.join(map(repr, missing))}"
                raise BadData("FAC-I01", "missing columns", str(file), there, rule, advice)

    def files(self) -> list[Path]:
        """The manifests."""
        return self._manifests()

    def pending(self) -> Iterator[Pending | BadData]:
        """One dialogue a line."""
        manifests = self._manifests()
        first = next((record for file in manifests if (record := first_record(file))), {})
        if self.tars is not None or "shard_id" in first:
            yield from self._tarred(manifests)
            return
        for file in manifests:
            for where, line in read_json_records(file):
                good = line if isinstance(line, BadData) else self._checked(line, where)
                if isinstance(good, BadData):
                    yield good
                else:
                    yield Pending(_name(good), where, partial(self._from_file, where, good))

    # ---- plain

    def _from_file(self, where: str, record: Mapping[str, Any]) -> Dialogue:
        file = self.paths.file(record["audio_filepath"], f"{where}, audio_filepath")
        return self._dialogue(where, record, file)

    def _dialogue(self, where: str, record: Mapping[str, Any], source: Path | bytes) -> Dialogue:
        offset, duration = record.get("offset"), record.get("duration")
        place = f"{where}, {record['audio_filepath']}"
        if offset is None and PIECE.fullmatch(record["audio_filepath"]) and isinstance(source, bytes):
            offset = 0.0
        if offset is not None:
            sound = read_sound(source, place, self.options, offset, duration)
        else:
            sound = read_sound(source, place, self.options)
            have = len(sound.samples) / sound.sample_rate
            if duration is not None and abs(duration - have) > TOLERANCE:
                rule = f"the {have:.3f} s that there are, within {TOLERANCE} s"
                advice = "Make the manifest again, or give the piece an offset."
                raise BadData("FAC-A09", "duration other than in the manifest", place, duration, rule, advice)
        custom = self.kept(record, {"audio_filepath", "duration", self.text_field, self.answer_field or "", "shard_id"})
        answer = record[self.answer_field] if self.answer_field else None
        return self.dialogue(_name(record), where, record.get(self.text_field), sound, custom, answer)

    def _checked(self, record: dict[str, Any], where: str) -> dict[str, Any] | BadData:
        if not isinstance(record.get("audio_filepath"), str):
            return bad_field(f"{where}, audio_filepath", record.get("audio_filepath"), "a path")
        for name in ("duration", "offset"):
            value = record.get(name)
            least = 0.0 if name == "offset" else 1e-9
            if value is not None and not (isinstance(value, int | float) and least <= value < float("inf")):
                return BadData(
                    "FAC-D07", f"bad {name}", f"{where}, {name}", value, "seconds", "Make the manifest again."
                )
        return record

    # ---- tarred

    def _tarred(self, manifests: list[Path]) -> Iterator[Pending | BadData]:
        shards: dict[int, dict[str, list[tuple[str, dict[str, Any]]]]] = {}
        for file in manifests:
            named = NUMBERED.search(file.name) if len(manifests) > 1 else None
            for where, record in read_json_records(file):
                good = record if isinstance(record, BadData) else self._checked(record, where)
                if isinstance(good, BadData):
                    yield good
                    continue
                shard = good.get("shard_id", int(named[1]) if named else None)
                if not isinstance(shard, int):
                    yield bad_field(f"{where}, shard_id", shard, "the number of the tar file")
                    continue
                match = PIECE.fullmatch(good["audio_filepath"])
                member = match["stem"] + (match["ending"] or "") if match else good["audio_filepath"]
                shards.setdefault(shard, {}).setdefault(member, []).append((where, good))
        tars = self._tar_files(manifests[0])
        for shard, members in sorted(shards.items()):
            if shard in tars:
                yield from self._members(tars[shard], members)
            else:
                where, _ = next(iter(members.values()))[0]
                told = f"tar files of the shards {', '.join(map(str, sorted(tars))) or 'none'}"
                advice = "Fetch what is missing, or name the files: --set tars=audio__OP_0..7_CL_.tar."
                raise BadData("FAC-D14", "shards that do not go together", where, told, f"also shard {shard}", advice)

    def _members(self, tar: Path, members: dict[str, list[tuple[str, dict[str, Any]]]]) -> Iterator[Pending | BadData]:
        """Dialogues of the members of a tar file; it is read from front to end."""
        left = dict(members)
        try:
            with tarfile.open(tar, "r|*") as content:
                for info in content:
                    if info.name not in left:
                        if info.isfile():
                            rule, advice = (
                                "members of the manifest alone",
                                "Add it to the manifest, or fetch both again.",
                            )
                            yield BadData("FAC-D12", "member that no line names", str(tar), info.name, rule, advice)
                        continue
                    if not info.isfile() or info.size > LARGEST:
                        told = f"{info.name}, {info.size} bytes"
                        rule = f"regular files up to {LARGEST} bytes"
                        yield BadData("FAC-D13", "tar member that is not taken", str(tar), told, rule, "Do not use it.")
                        left.pop(info.name)
                        continue
                    file = content.extractfile(info)
                    assert file is not None
                    data = file.read()
                    for where, record in left.pop(info.name):
                        yield Pending(_name(record), where, partial(self._dialogue, where, record, data))
        except tarfile.ReadError as error:
            yield BadData("FAC-D11", "tar file that breaks off", str(tar), str(error), "a whole one", "Fetch it again.")
        for member, records in left.items():
            where, _ = records[0]
            yield BadData(
                "FAC-D11", "tar file without a member", where, member, f"it in {tar}", "Fetch the shard again."
            )

    def _tar_files(self, manifest: Path) -> dict[int, Path]:
        """Shard -> tar file."""
        if self.tars is not None:
            files = [self.paths.file(name, "tars") for name in expand_shards(self.tars)]
        else:
            folder = manifest.parent
            files = sorted(folder.glob("audio_*.tar")) or sorted(folder.parent.glob("audio_*.tar"))
        return {int(match[1]): file for file in files if (match := NUMBERED.search(file.name))}

    def _manifests(self) -> list[Path]:
        if self.source.is_dir():
            files = [self.source / "tarred_audio_manifest.json"]
        else:
            files = [self.source.parent / name for name in expand_shards(self.source.name)]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(str(missing_file(file, str(self.source), "FAC-D01")))
        return files


def _name(record: Mapping[str, Any]) -> str:
    """Name of a line's dialogue: its recording, and the piece of it."""
    name = str(Path(record["audio_filepath"]).with_suffix(""))
    offset = record.get("offset")
    return name if offset is None else f"{name}-{round(offset * 1000):07d}"
