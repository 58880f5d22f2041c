"""What all importers share: going through a source, going on after a stop, and telling what is bad."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fac_lightning.data.dialogue import Dialogue, DialogueWriter, read_cuts
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.trusted_paths import TrustedPaths

__all__ = ["DialogueImport", "Pending", "check_settings", "count_dialogues", "write_bad", "write_settings"]

log = logging.getLogger(__name__)

SETTINGS = "settings.json"
BAD = "bad.jsonl"
LONGEST_NAME = 180  # characters of a dialogue's name in a file name, of the 255 that file systems allow
SHOWN = 20  # bad items that a message lists
ENDS = 2**20  # bytes at either end of a file by which it is known again
SOUNDS = {".flac", ".m4a", ".mp3", ".ogg", ".opus", ".sph", ".tar", ".wav"}  # known by their size
RESERVED = {
    "codes",
    "spoken",
    "system",
    "target_audio",
    "target_audio_unaligned",
}  # what dialogues on disk say in these words


@dataclass(frozen=True)
class Pending:
    """A dialogue of a source, not read yet: it is not read at all where it is there already."""

    id: str
    where: str  # file, with line or row
    load: Callable[[], Dialogue]


class DialogueImport(ABC):
    """Base of jobs that make a dialogues folder of other people's data.

    Items that are bad are left out, told, and listed in ``bad.jsonl`` beside the manifest. Calling ``run`` again goes
    on where a stopped run was; a folder that was made of another source or with other arguments is refused.

    A subclass keeps every argument of its constructor under the argument's name.

    Args:
        source: File or folder.
        out: Dialogues folder.
        options: Rules; the plain ones when None.
    """

    def __init__(self, source: str, out: str, options: ImportOptions | None = None) -> None:
        self.source, self.out, self.options = Path(source), Path(out), options or ImportOptions()
        self._left: set[str] = set()  # names of values that have no place

    @abstractmethod
    def pending(self) -> Iterator[Pending | BadData]:
        """The dialogues in order, and in between what is wrong with items that give none.

        Raises:
            ValueError: The source as a whole cannot be used.
        """

    def files(self) -> list[Path]:
        """Files by which the source is known again."""
        if self.source.is_dir():
            return sorted(path for path in self.source.rglob("*") if path.is_file())
        return [self.source]

    def known_by(self) -> str:
        """What changes when the source does."""
        return fingerprint(self.files(), self.source)

    def count(self) -> int | None:
        """How many items there are, where that is cheap to know."""
        return None

    @property
    def paths(self) -> TrustedPaths:
        """Files that the source may name."""
        beside = self.source if self.source.is_dir() else self.source.parent
        root = beside if self.options.root is None else Path(self.options.root)
        return TrustedPaths(root, self.options.trust_paths, self.options.trust_commands)

    def run(self) -> dict[str, Any]:
        """Write what is missing; the counts, also in ``summary.json``.

        Raises:
            FileNotFoundError: There is no such source.
            ValueError: The source cannot be used, nothing in it is good, or some is bad and ``skip_bad`` is not set.
        """
        self.check_source()
        items = self.pending()
        first = next(items, None)  # a source that cannot be used as a whole says so before anything is written
        settings = {"source": self.known_by(), "arguments": self._arguments()}
        check_settings(self.out, settings)
        write_settings(self.out, settings)
        with DialogueWriter(self.out) as writer:
            before = len(writer.done)
            bad = self._write(writer, _chained(first, items))
            good = len(writer.done)
        write_bad(self.out, [bad_fields(one) for one in bad])
        summary = {**count_dialogues(self.out), "new": good - before, "bad": len(bad)} if good else {}
        if good:
            (self.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        if self._left:
            log.warning("%s: left out, being no texts or numbers: %s", self.source, ", ".join(sorted(self._left)))
        self._judge(bad, good)
        return summary

    def kept(self, record: Mapping[str, Any], used: Iterable[str]) -> dict[str, Any]:
        """Texts, numbers and truths of a record that no turn holds, for ``custom``; others are told in the end."""
        rest = {key: value for key, value in record.items() if key not in set(used) and value is not None}
        plain = {key: value for key, value in rest.items() if isinstance(value, str | int | float)}
        self._left |= rest.keys() - plain.keys()
        return {f"source_{key}" if key in RESERVED else key: value for key, value in plain.items()}

    def check_source(self) -> None:
        """Refuse a source that is not there."""
        if not self.source.exists():
            raise FileNotFoundError(f"{self.source} does not exist; name the file or folder to import")

    def _write(self, writer: DialogueWriter, items: Iterator[Pending | BadData]) -> list[BadData]:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        hidden, bad, seen = not console.is_terminal, [], dict[str, str]()
        total = self.count() if not hidden else None
        for item in track(items, "Dialogues", total, transient=True, disable=hidden, console=console):
            if len(seen) == self.options.limit:
                break
            if isinstance(item, BadData):
                bad.append(item)
                continue
            name = short_name(item.id)
            if name in seen:
                rule = f"an id that {seen[name]} does not have"
                bad.append(BadData("FAC-D06", "id that is there already", item.where, item.id, rule, "Rename one."))
                continue
            try:
                if name not in writer.done:
                    writer.write(_named(_one_rate(item.load(), item.where), name))
            except BadData as error:
                bad.append(error)
            except ValueError as error:  # the writer's own words
                bad.append(
                    BadData("FAC-I02", "dialogue that cannot be stored", item.where, item.id, str(error), "Correct it.")
                )
            else:
                seen[name] = item.where
        return bad

    def _judge(self, bad: list[BadData], good: int) -> None:
        told = [*map(str, bad[:SHOWN]), *([f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else [])]
        if not good:
            raise ValueError("\n".join([f"{self.source} has nothing that can be imported", *told]))
        if bad and not self.options.skip_bad:
            head = (
                f"{self.source}: {len(bad)} bad item(s) are left out, see {self.out / BAD}; {good} good dialogues are "
                "in. skip_bad=true accepts that"
            )
            raise ValueError("\n".join([head, *told]))
        for text in told:
            log.warning("%s", text)

    def _arguments(self) -> dict[str, Any]:
        """What the content of the folder depends on, besides the source."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("source", "out", "options")]
        plain = {name: getattr(self, name) for name in names}
        plain = {name: asdict(x) if is_dataclass(x) and not isinstance(x, type) else x for name, x in plain.items()}
        shared = {"sample_rate": self.options.sample_rate, "mix_channels": self.options.mix_channels}
        return json.loads(json.dumps({**plain, **shared}, default=str))  # type: ignore[no-any-return]


def fingerprint(files: list[Path], source: Path) -> str:
    """Hash of the names and sizes of files, and of both ends of those that are no sound."""
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size
        name = file.relative_to(source) if source.is_dir() and file.is_relative_to(source) else file.name
        found.update(f"{name}\0{size}\0".encode())
        if file.suffix.lower() not in SOUNDS:
            with file.open("rb") as content:
                found.update(content.read(ENDS))
                content.seek(max(ENDS, size - ENDS))
                found.update(content.read(ENDS))
    return found.hexdigest()


def check_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that is made of something else: a mixture would be neither.

    Raises:
        ValueError: The settings in it differ, or it has dialogues and no settings.
    """
    made, manifest = folder / SETTINGS, folder / "cuts.jsonl"
    if not manifest.exists() or not manifest.stat().st_size:
        return
    if not made.exists():
        raise ValueError(f"{folder} holds dialogues that no import made; choose another folder")
    old = json.loads(made.read_text(encoding="utf-8"))
    changed = [key for key in settings if key != "arguments" and old.get(key) != settings[key]]
    new, was = settings.get("arguments") or {}, old.get("arguments") or {}
    changed += [key for key in new.keys() | was.keys() if new.get(key) != was.get(key)]
    if changed:
        raise ValueError(
            f"{folder} was made with another {', '.join(sorted(changed))} (see {SETTINGS} there); choose another "
            "folder, or delete this one to make it anew"
        )


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make a folder and leave in it what it is made of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_bad(folder: Path, bad: Sequence[Mapping[str, str]]) -> None:
    """List bad items in ``bad.jsonl``, with their text and what is known of it; no such file where there are none."""
    file = folder / BAD
    if not bad:
        file.unlink(missing_ok=True)
        return
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in bad), encoding="utf-8")
    os.replace(part, file)


def bad_fields(bad: BadData) -> dict[str, str]:
    """A bad item as it stands in ``bad.jsonl``."""
    names = ("code", "what", "where", "value", "rule", "advice")
    return {**{name: str(getattr(bad, name)) for name in names}, "text": str(bad)}


def count_dialogues(folder: Path) -> dict[str, Any]:
    """Counts of what is in a dialogues folder."""
    counts: Counter[str] = Counter()
    seconds = {"user": 0.0, "assistant": 0.0}
    for cut in read_cuts(folder):
        counts["dialogues"] += 1
        for turn in cut.supervisions:
            counts["turns"] += 1
            if turn.custom["spoken"] or "codes" in turn.custom:
                counts[f"spoken_{turn.speaker}_turns"] += 1
                seconds[turn.speaker] += turn.duration
    names = ("dialogues", "turns", "spoken_user_turns", "spoken_assistant_turns")
    return {name: counts[name] for name in names} | {f"{role}_hours": n / 3600 for role, n in seconds.items()}


def _chained(first: Pending | BadData | None, rest: Iterator[Pending | BadData]) -> Iterator[Pending | BadData]:
    if first is not None:
        yield first
        yield from rest


def short_name(name: str) -> str:
    """A dialogue's name that can be part of a file name: the end of a long one, behind a hash of the whole."""
    if len(quote(name, safe="")) <= LONGEST_NAME:
        return name
    end = name[-LONGEST_NAME // 18 :]  # a character may take nine when it is quoted
    return f"{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}-{end}"


def _named(dialogue: Dialogue, name: str) -> Dialogue:
    """The dialogue under a shortened name, its own one kept with it."""
    if dialogue.id == name:
        return dialogue
    return replace(dialogue, id=name, custom={**dialogue.custom, "source_id": dialogue.id})


def _one_rate(dialogue: Dialogue, where: str) -> Dialogue:
    """The dialogue, if all turns of a side have one sample rate."""
    for role in ("user", "assistant"):
        rates = sorted(
            {turn.sample_rate or 0 for turn in dialogue.turns if turn.role == role and turn.audio is not None}
        )
        if len(rates) > 1:
            told, rule = ", ".join(f"{rate} Hz" for rate in rates), f"one rate for all of the {role}'s turns"
            raise BadData("FAC-A08", "sample rates that differ", where, told, rule, "Set sample_rate to resample them.")
    return dialogue
