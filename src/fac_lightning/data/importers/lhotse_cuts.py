"""Lhotse's CutSets and Shar folders, NeMo's duplex cuts among them, become dialogues folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.data.dialogue import Dialogue, Role, Turn
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import DialogueImport, Pending
from fac_lightning.data.importers.json_records import is_json, read_json_records
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.shar_records import Fields, is_shar, read_shar
from fac_lightning.data.importers.sound import Sound, read_sound, sound_header, spoken_turn
from fac_lightning.data.importers.told import bad_field, shown
from fac_lightning.data.intake.shar import list_fields

__all__ = ["LhotseImport"]

ANSWER = "target_audio"
TOLERANCE = 0.04  # seconds by which a recording and its manifest may differ: one speech token
LEAST = 1e-9  # seconds
#: speakers, in lower case, as NeMo, moshi-finetune and others call the two sides
SPEAKERS: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "speaker_other": "user",
    "agent": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "speaker_main": "assistant",
}


class LhotseImport(DialogueImport):
    """Job: lhotse's cuts become a dialogues folder, a supervision a turn.

    The user speaks in the cut's recording, the assistant in the custom recording ``target_audio``, or in the same
    recording where there is no other. Where both last equally long they share one time (NeMo's duplex cuts): turns are
    in the order of their beginnings, and ``start``, ``end`` and word times are kept in the turn's ``custom``. An
    answer that lasts otherwise, or is marked ``target_audio_unaligned``, has a time of its own; if there is one such
    turn, it is the whole recording. What lies outside of all supervisions is not copied.

    Recordings are read here and not by lhotse, which pads, cuts and pitches files that are other than their manifest
    says, and stamps the length of the question on the answer in Shar.

    Args:
        source: ``cuts.jsonl`` or ``.jsonl.gz``, or a Shar folder.
        out: Dialogues folder.
        speakers: Speaker -> role, besides "user", "human", "agent", "assistant" and the like in any case.
        role: Of speakers that have none, in cuts where no speaker has: "user" makes recognition (mode ASR) of a set
            without dialogues, "assistant" synthesis (mode TTS).
        answer_field: Key in the cut's ``custom`` with the assistant's text, where no supervision has it.
        options: Rules; the plain ones when None.
    """

    def __init__(
        self,
        source: str,
        out: str,
        speakers: dict[str, str] | None = None,
        role: str = "user",
        answer_field: str | None = None,
        options: ImportOptions | None = None,
    ) -> None:
        super().__init__(source, out, options)
        if wrong := sorted({role, *(speakers or {}).values()} - {"user", "assistant"}):
            raise ValueError(f"a role is 'user' or 'assistant', got {wrong[0]!r}")
        self.speakers, self.role, self.answer_field = speakers, role, answer_field

    def check_source(self) -> None:
        """Refuse what is neither cuts nor Shar."""
        super().check_source()
        if not is_shar(self.source) and not (self.source.is_file() and is_json(self.source)):
            raise ValueError(f"{self.source} is neither a Shar folder (cuts.000000.jsonl.gz ...) nor a cuts.jsonl(.gz)")

    def files(self) -> list[Path]:
        """Manifest, or all shards."""
        if self.source.is_file():
            return [self.source]
        return [file for shards in list_fields(self.source).values() for file in shards.values()]

    def pending(self) -> Iterator[Pending | BadData]:
        """One dialogue a cut."""
        items: Iterator[tuple[str, dict[str, Any] | BadData, Fields]]
        if self.source.is_dir():
            arrays = [name for name, shards in list_fields(self.source).items() if ".tar" in min(shards.values()).name]
            self._left |= set(arrays) - {"recording", ANSWER}
            items = read_shar(self.source)
        else:
            items = ((where, cut, {}) for where, cut in read_json_records(self.source))
        for where, cut, fields in items:
            if isinstance(cut, BadData):
                yield cut
            elif not isinstance(cut.get("id"), str):
                yield bad_field(f"{where}, id", cut.get("id"), "the cut's id")
            else:
                yield Pending(cut["id"], where, partial(self._dialogue, where, cut, fields))

    def _dialogue(self, where: str, cut: Mapping[str, Any], fields: Fields) -> Dialogue:
        custom = {**(cut.get("custom") or {}), **_plain_fields(fields)}
        said = cut.get("supervisions") or []
        if cut.get("type", "MonoCut") != "MonoCut" or not isinstance(said, list):
            advice = "Store its audio first: cuts.save_audios(...) in lhotse."
            raise BadData("FAC-I02", "cut of another kind", where, shown(cut.get("type")), "a MonoCut", advice)
        if any("spoken" in (one.get("custom") or {}) for one in said):
            raise bad_field(where, cut["id"], "data of others: this is a dialogues folder already", "Use it as it is")
        roles = self._roles(said, where)
        question, seconds = self._question(cut, fields, where)
        answer = self._answer_sound(custom, fields, where)
        aligned = answer is None or not (
            custom.get(f"{ANSWER}_unaligned") or abs(len(answer.samples) / answer.sample_rate - seconds) > TOLERANCE
        )
        if answer is not None and aligned and "recording" not in fields:  # of a manifest, it has the recording's time
            start = _seconds(cut, "start", where, 0.0)
            answer = _piece(answer, start, _seconds(cut, "duration", where, LEAST), where)
        turns: list[tuple[float, Turn]] = []
        replies = sum(role == "assistant" for role in roles)
        for one, role in zip(said, roles, strict=True):
            sound = answer if role == "assistant" and answer is not None else question
            text = one.get("text")
            if not isinstance(text, str):
                raise BadData("FAC-D09", "turn without text", where, shown(text), "words", "Correct it.")
            first, length = _seconds(one, "start", where, -TOLERANCE), _seconds(one, "duration", where, LEAST)
            own = sound is answer and not aligned
            kept = self._kept(one, () if own else (first, first + length))
            if sound is None:
                turns.append((first, Turn(role, text, custom=kept)))
                continue
            whole = own and replies == 1
            piece = sound if whole else _piece(sound, first, length, where)
            turns.append((first, spoken_turn(role, text, piece, self.options, **kept)))
        if answer is not None and not replies:
            turns.append((float("inf"), self._answer(custom, answer, where)))
        if not turns:
            raise bad_field(f"{where}, supervisions", said, "one turn at least")
        if aligned:
            turns.sort(key=lambda turn: turn[0])
        values = self.kept(custom, {ANSWER, f"{ANSWER}_unaligned", self.answer_field or ""})
        return Dialogue(cut["id"], tuple(turn for _, turn in turns), custom.get("system"), values)

    def _roles(self, said: list[Mapping[str, Any]], where: str) -> list[Role]:
        known = {**SPEAKERS, **{name.lower(): role for name, role in (self.speakers or {}).items()}}
        found = [known.get(str(one.get("speaker")).lower()) for one in said]
        if not any(found):
            return [self.role] * len(said)  # type: ignore[list-item]
        if None in found:
            rule = f"one of {', '.join(map(repr, sorted(known)))}"
            told = repr(said[found.index(None)].get("speaker"))
            raise BadData("FAC-I04", "unknown speaker", where, told, rule, "Say who it is: --set speakers.NAME=user.")
        return found  # type: ignore[return-value]

    def _answer(self, custom: Mapping[str, Any], answer: Sound, where: str) -> Turn:
        """The turn of an answer that no supervision has."""
        text = custom.get(self.answer_field or "")
        if not isinstance(text, str) or not text.strip():
            texts = [key for key, value in custom.items() if isinstance(value, str)]
            advice = f"Name its key: --set answer_field=NAME; custom has {', '.join(texts) or 'no texts'}."
            told = f"{ANSWER} and no supervision of the assistant"
            raise BadData("FAC-D09", "answer without text", where, told, "what is said in it", advice)
        return spoken_turn("assistant", text, answer, self.options)

    def _question(self, cut: Mapping[str, Any], fields: Fields, where: str) -> tuple[Sound | None, float]:
        """Sound of the cut, and the seconds of what it is a piece of."""
        where = f"{where}, recording"
        start, seconds = _seconds(cut, "start", where, 0.0), _seconds(cut, "duration", where, LEAST)
        if isinstance(data := fields.get("recording"), bytes):  # of a Shar the piece is stored, not the recording
            sound = read_sound(data, where, self.options)
            _compare(len(sound.samples) / sound.sample_rate, seconds, where)
            return sound, seconds
        if cut.get("recording") is None:
            return None, 0.0
        source, told = self._source(cut["recording"], where)
        frames, rate = self._header(cut["recording"], source, where)
        sound = read_sound(source, where, self.options, start, seconds, _channel(told, cut.get("channel")))
        return sound, frames / rate

    def _answer_sound(self, custom: Mapping[str, Any], fields: Fields, where: str) -> Sound | None:
        where = f"{where}, {ANSWER}"
        if isinstance(data := fields.get(ANSWER), bytes):
            return read_sound(data, where, self.options)  # its manifest may have the length of the question
        if custom.get(ANSWER) is None:
            return None
        source, _ = self._source(custom[ANSWER], where)
        self._header(custom[ANSWER], source, where)
        return read_sound(source, where, self.options)

    def _header(self, recording: Mapping[str, Any], source: Path | bytes, where: str) -> tuple[int, int]:
        """Frames and Hz of a recording, which must be those of its manifest."""
        frames, rate = sound_header(source, where)
        due, count = recording.get("sampling_rate"), recording.get("num_samples")
        if due is not None and due != rate:
            advice = "Make the manifest again."
            raise BadData("FAC-A08", "wrong sample rate", where, rate, f"the manifest's {due}", advice)
        if isinstance(count, int):
            _compare(frames / rate, count / rate, where)
        return frames, rate

    def _source(self, recording: Any, where: str) -> tuple[Path | bytes, Mapping[str, Any]]:
        """File or bytes of a recording, and its source as JSON."""
        if not isinstance(recording, dict):
            raise bad_field(where, recording, "a recording")
        if recording.get("transforms"):
            advice = "Store the audio first: cuts.save_audios(...) in lhotse."
            raise BadData("FAC-I02", "recording with transforms", where, shown(recording["transforms"]), "none", advice)
        # NeMo's documentation writes the path alone
        plain = [{"type": "file", "source": recording["path"]}] if "path" in recording else []
        sources = recording.get("sources") or plain
        if len(sources) != 1 or not isinstance(sources[0], dict):
            raise bad_field(f"{where}, sources", sources, "one source")
        kind, written = sources[0].get("type"), sources[0].get("source")
        if kind == "command":
            return self.paths.run(str(written), where), sources[0]
        if kind != "file":
            rule = "file, or the fields of a Shar folder"
            raise BadData("FAC-D10", "source that leaves the data", where, shown(kind), rule, "Store it as files.")
        return self.paths.file(written, where), sources[0]

    def _kept(self, one: Mapping[str, Any], times: tuple[float, float] | tuple[()]) -> dict[str, Any]:
        """What a supervision says besides its text."""
        kept: dict[str, Any] = dict(zip(("start", "end"), times, strict=False))
        kept |= {name: one[name] for name in ("speaker", "language", "gender") if one.get(name) is not None}
        words = (one.get("alignment") or {}).get("word") or []
        if words and times:  # [symbol, start, duration, score]
            kept["words"] = [[word[0], word[1], word[1] + word[2]] for word in words]
        return {**self.kept(one.get("custom") or {}, ()), **kept}


def _channel(source: Mapping[str, Any], channel: Any) -> int | None:
    """Place in the file of a cut's channel; None for the one of a mono file."""
    channels = source.get("channels") or [0]
    if len(channels) < 2 or not isinstance(channel, int) or channel not in channels:
        return None
    return int(channels.index(channel))


def _compare(have: float, told: float, where: str) -> None:
    """Refuse a recording of another length than it is told to have, in seconds."""
    if abs(have - told) > TOLERANCE:
        rule, advice = f"the manifest's {told:.3f} s", "Make the manifest or the audio again."
        raise BadData("FAC-A09", "duration other than in the manifest", where, f"{have:.3f} s", rule, advice)


def _piece(sound: Sound, start: float, seconds: float, where: str) -> Sound:
    rate, total = sound.sample_rate, len(sound.samples)
    first, last = round(start * rate), round((start + seconds) * rate)
    slack = round(TOLERANCE * rate)  # times are rounded when they are written
    if first < -slack or last > total + slack or first >= total:
        told, rule = f"{start:.3f} to {start + seconds:.3f} s", f"a piece of the {total / rate:.3f} s that there are"
        raise BadData("FAC-D09", "turn outside its audio", where, told, rule, "Correct the turn or leave it out.")
    return Sound(sound.samples[max(0, first) : last], rate)


def _seconds(record: Mapping[str, Any], name: str, where: str, least: float) -> float:
    value = record.get(name)
    if not isinstance(value, int | float) or not least <= value < float("inf"):
        raise BadData("FAC-D07", f"bad {name}", f"{where}, {name}", shown(value), "seconds", "Make the manifest again.")
    return float(value)


def _plain_fields(fields: Fields) -> dict[str, Any]:
    """Values that a Shar keeps in JSON files of their own."""
    objects = [value for value in fields.values() if isinstance(value, dict)]
    return {key: value for one in objects for key, value in one.items() if key != "cut_id"}
