"""Dialogues on disk: one Lhotse cut a line, the audio beside it.

A folder holds ``cuts.jsonl`` and ``audio/*.flac``. The user's turns are one recording, end to end; the assistant's
turns are another, ``target_audio``, which does not run along the first (``target_audio_unaligned``). Each turn is a
supervision whose start and duration count in its own side's recording. Paths in the manifest are relative to it.

An assistant's turn may come as codes of a named tokenizer, without a recording; they stand in the manifest, as
``codes`` of the supervision.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from fac_lightning.data.audio import Span, read_span, to_int16
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.lhotse_setup import import_lhotse
from fac_lightning.data.manifest import Manifest, drop_partial_line, manifest_path, read_records
from fac_lightning.data.turn_codes import TurnCodes

__all__ = [
    "Dialogue",
    "DialogueWriter",
    "Turn",
    "load_turn_audio",
    "load_turn_codes",
    "read_cuts",
    "read_dialogues",
]

Role = Literal["user", "assistant"]
RESERVED = {"system", "target_audio", "target_audio_unaligned"}
RESERVED_OF_TURNS = {"codes", "spoken"}
NOMINAL_CHARACTERS_PER_SECOND = 15.0


@dataclass(frozen=True)
class Turn:
    """What one side says once."""

    role: Role
    text: str
    audio: np.ndarray | None = None  # (S,) float32, mono
    sample_rate: int | None = None  # Hz, with audio
    custom: dict[str, Any] = field(default_factory=dict)  # JSON values
    codes: TurnCodes | None = None  # the assistant's speech where there is no audio


@dataclass(frozen=True)
class Dialogue:
    """Turns of a user and an assistant."""

    id: str
    turns: tuple[Turn, ...]
    system: str | None = None  # replaces the system prompt of the mode
    custom: dict[str, Any] = field(default_factory=dict)  # JSON values


class DialogueWriter:
    """Write dialogues to a folder so that an interrupted run can go on.

    Audio is written first (to a temporary name, then renamed), the manifest line last; a line cut short by a crash is
    removed when the folder is opened again.

    Args:
        folder: Made when missing. A folder that already has dialogues is continued; see ``done``.

    Example:
        >>> with DialogueWriter(folder) as writer:  # doctest: +SKIP
        ...     for dialogue in dialogues:
        ...         if dialogue.id not in writer.done:
        ...             writer.write(dialogue)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        (self.folder / "audio").mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "cuts.jsonl"
        if self.path.exists():
            drop_partial_line(self.path)
            self.done = {record["id"] for record in read_records(self.path)}
        else:
            self.done = set()
        self._file = self.path.open("a", encoding="utf-8")

    def __enter__(self) -> DialogueWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the manifest."""
        self._file.close()

    def write(self, dialogue: Dialogue) -> None:
        """Append one dialogue.

        Raises:
            ValueError: The id is already there, or a turn's audio or codes cannot be stored.
        """
        if dialogue.id in self.done:
            raise ValueError(f"dialogue {dialogue.id!r} is already in {self.path}; ids must be unique")
        line = json.dumps(self._cut(dialogue).to_dict(), ensure_ascii=False)
        self._file.write(line + "\n")
        self._file.flush()
        self.done.add(dialogue.id)

    def _cut(self, dialogue: Dialogue) -> Any:
        lhotse = import_lhotse()
        if not dialogue.turns:
            raise ValueError(f"dialogue {dialogue.id!r} has no turns")
        if taken := RESERVED & dialogue.custom.keys():
            raise ValueError(f"dialogue {dialogue.id!r}: custom keys {sorted(taken)} are reserved; rename them")
        for i, turn in enumerate(dialogue.turns):
            _check_parts(turn, f"dialogue {dialogue.id!r}, turn {i}")
        recordings, spans = {}, {}
        for role in ("user", "assistant"):
            recordings[role], side = self._write_side(dialogue, role)
            spans.update(side)
        user = recordings["user"]
        supervisions, nominal = [], 0.0
        for i, turn in enumerate(dialogue.turns):
            # lhotse wants a length of everything: turns without audio get that of their text, read aloud.
            start, duration = spans.get(i, (0.0, max(1, len(turn.text)) / NOMINAL_CHARACTERS_PER_SECOND))
            stored = {}
            if turn.codes is not None:
                duration, stored = turn.codes.seconds, {"codes": turn.codes.to_record()}
            nominal += duration
            supervisions.append(
                lhotse.SupervisionSegment(
                    id=f"{dialogue.id}-{i}",
                    recording_id=user.id if user else dialogue.id,
                    start=start,
                    duration=duration,
                    text=turn.text,
                    speaker=turn.role,
                    custom={**turn.custom, **stored, "spoken": i in spans},
                )
            )
        custom = dict(dialogue.custom)
        if dialogue.system is not None:
            custom["system"] = dialogue.system
        if recordings["assistant"]:
            custom.update(target_audio=recordings["assistant"], target_audio_unaligned=True)
        return lhotse.MonoCut(
            id=dialogue.id,
            start=0.0,
            duration=user.duration if user else nominal,
            channel=0,
            supervisions=supervisions,
            recording=user,
            custom=custom or None,
        )

    def _write_side(self, dialogue: Dialogue, role: str) -> tuple[Any, dict[int, tuple[float, float]]]:
        """Recording of one side's spoken turns, and the span of each in seconds."""
        lhotse = import_lhotse()
        from lhotse.audio import AudioSource

        turns = {i: t for i, t in enumerate(dialogue.turns) if t.role == role and t.audio is not None}
        if not turns:
            return None, {}
        rates = {t.sample_rate for t in turns.values()}
        rate = rates.pop()
        if rates or not rate:
            raise ValueError(
                f"dialogue {dialogue.id!r}: the {role}'s turns have sample rates {sorted(map(str, {rate, *rates}))}; "
                "all of one side must share one: resample before writing"
            )
        pieces = [_checked(t.audio, f"dialogue {dialogue.id!r}, turn {i}") for i, t in turns.items()]
        ends = np.cumsum([len(p) for p in pieces]).tolist()
        spans = {
            i: ((end - len(piece)) / rate, len(piece) / rate) for i, piece, end in zip(turns, pieces, ends, strict=True)
        }
        name = f"audio/{quote(dialogue.id, safe='')}-{role}.flac"
        _write_flac(self.folder / name, np.concatenate(pieces), rate)
        recording = lhotse.Recording(
            id=f"{dialogue.id}-{role}",
            sources=[AudioSource(type="file", channels=[0], source=name)],
            sampling_rate=rate,
            num_samples=ends[-1],
            duration=ends[-1] / rate,
        )
        return recording, spans


def read_cuts(path: str | Path, limits: IntakeLimits | None = None) -> Any:
    """Lazy lhotse ``CutSet`` of a dialogues folder or manifest; paths are resolved against the manifest's folder.

    Args:
        path: Folder or manifest.
        limits: Where sources may lead; the default when None.
    """
    file = manifest_path(path)
    return import_lhotse().CutSet(Manifest(file, limits))


def read_dialogues(path: str | Path, audio: bool = True, sample_rate: int | None = None) -> Iterator[Dialogue]:
    """Dialogues of a folder or manifest, in order.

    Args:
        path: Folder or manifest.
        audio: Load the audio of spoken turns.
        sample_rate: Resample to this rate, Hz; as stored when None.
    """
    for cut in read_cuts(path):
        yield dialogue_of_cut(cut, audio, sample_rate)


def dialogue_of_cut(cut: Any, audio: bool = True, sample_rate: int | None = None) -> Dialogue:
    """The dialogue that a cut holds.

    Raises:
        ValueError: A supervision has no text or an unknown role.
    """
    turns = []
    for i, supervision in enumerate(cut.supervisions):
        check_turn(cut, i)
        samples, rate = load_turn_audio(cut, i, sample_rate) if audio else (None, None)
        custom = {k: v for k, v in (supervision.custom or {}).items() if k not in RESERVED_OF_TURNS}
        turns.append(Turn(supervision.speaker, supervision.text, samples, rate, custom, load_turn_codes(cut, i)))
    custom = {k: v for k, v in (cut.custom or {}).items() if k not in RESERVED}
    return Dialogue(cut.id, tuple(turns), (cut.custom or {}).get("system"), custom)


def check_turn(cut: Any, index: int) -> None:
    """Refuse a turn without a role or text."""
    supervision = cut.supervisions[index]
    if supervision.speaker not in ("user", "assistant") or supervision.text is None:
        raise ValueError(
            f"cut {cut.id!r}, turn {index}: its speaker is {supervision.speaker!r} and its text {supervision.text!r}; "
            "a turn needs the speaker 'user' or 'assistant' and a text"
        )


def turn_span(cut: Any, index: int) -> Span | None:
    """Where the audio of turn ``index`` of a cut is, or None for a turn without audio."""
    supervision, custom = cut.supervisions[index], cut.custom or {}
    if not (supervision.custom or {}).get("spoken", True):
        return None
    user = supervision.speaker == "user"
    recording = cut.recording if user else custom.get("target_audio")
    if recording is None:
        return None
    start = supervision.start + (cut.start if user else 0.0)
    rate = recording.sampling_rate
    channel = cut.channel if user and isinstance(cut.channel, int) and recording.num_channels > 1 else None
    return Span(recording, round(start * rate), round(supervision.duration * rate), channel)


def load_turn_audio(cut: Any, index: int, sample_rate: int | None = None) -> tuple[np.ndarray | None, int | None]:
    """Samples ``(S,)`` float32 of one turn and their rate in Hz; ``(None, None)`` for a turn without audio.

    Args:
        cut: A cut of ``read_cuts``.
        index: Which turn.
        sample_rate: Resample to this rate; as stored when None.
    """
    span = turn_span(cut, index)
    if span is None:
        return None, None
    return read_span(span, sample_rate), sample_rate or span.recording.sampling_rate


def load_turn_codes(cut: Any, index: int) -> TurnCodes | None:
    """Codes that come with a turn; None for a turn without.

    Raises:
        BadData: FAC-D15: what is stored is damaged.
    """
    record = (cut.supervisions[index].custom or {}).get("codes")
    if record is None:
        return None
    try:
        return TurnCodes.from_record(record)
    except ValueError as error:
        where, rule, what = f"cut {cut.id!r}, turn {index}", "codes as they were stored", "damaged codes"
        raise bad_data("FAC-D15", where, str(error), rule, "Write the dialogue again", what) from error


def _check_parts(turn: Turn, what: str) -> None:
    """Refuse a turn whose parts do not go together."""
    if taken := RESERVED_OF_TURNS & turn.custom.keys():
        raise ValueError(f"{what}: custom keys {sorted(taken)} are reserved; rename them")
    if turn.codes is not None and (turn.audio is not None or turn.role != "assistant"):
        raise ValueError(
            f"{what}: codes are for assistant's turns without audio; this one is the {turn.role}'s"
            f"{' and has audio too: leave one out' if turn.audio is not None else ''}"
        )


def _checked(audio: np.ndarray | None, what: str) -> np.ndarray:
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 1 or not len(audio):
        raise ValueError(f"{what}: audio has the shape {audio.shape}; give mono samples (S,), at least one")
    if not np.isfinite(audio).all():
        raise ValueError(f"{what}: audio holds NaN or infinite samples")
    return audio


def _write_flac(path: Path, audio: np.ndarray, sample_rate: int) -> None:
    """Write 16-bit FLAC under a temporary name, then rename: a file that is there is whole."""
    import soundfile

    temporary = path.with_suffix(".part")
    samples = to_int16(audio)
    soundfile.write(temporary, samples, sample_rate, format="FLAC", subtype="PCM_16")
    os.replace(temporary, path)
