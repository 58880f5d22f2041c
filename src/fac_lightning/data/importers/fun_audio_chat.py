"""Fun-Audio-Chat's training JSON lines become a dialogues folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.dialogue import Dialogue, DialogueWriter, Turn
from fac_lightning.data.importers.base import check_settings, count_dialogues, write_bad, write_settings
from fac_lightning.data.importers.fun_audio_json import (
    FRAME_RATE,
    SAMPLE_RATE,
    BadLine,
    JsonDialogue,
    JsonTurn,
    pad_count,
    parse_line,
)
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.prompts import AUDIO_BOS, AUDIO_PAD, S2M_PROMPT, S2T_PROMPT
from fac_lightning.resampling import resample

__all__ = ["FunAudioChatImport"]

log = logging.getLogger(__name__)

SHOWN = 20  # bad lines that a message lists


class FunAudioChatImport:
    """Job: the training JSON lines of Fun-Audio-Chat become a dialogues folder.

    The user's waveforms are copied into the folder; the assistant's speech comes as codes, which stand in the manifest
    (``TurnCodes``). Train on it with the model's sizes and no speech tokenizer, or with the one of that name, and with
    the lead-in that ``delay_tokens`` says. A system prompt that only says the mode is left to the mode.

    Every line is checked before the first is written; what is wrong is told line by line. What is left out is listed in
    ``bad.jsonl`` beside the manifest. Calling ``run`` again goes on where a killed run stopped.

    Args:
        source: JSON-lines file.
        out: Dialogues folder.
        audio_root: Where relative paths of waveforms start; the folder of ``source`` when None.
        tokenizer: Name of the tokenizer that made the codes.
        codebook_size: Its codes.
        delay_tokens: ``<|audio_bos|>`` before the codes of every reply. They are not stored: layout puts them there.
        sample_rate: Hz of the user's speech in the folder.
        skip_bad: Leave bad lines out, each with a warning, and count them; else they end the job.
    """

    def __init__(
        self,
        source: str,
        out: str,
        audio_root: str | None = None,
        tokenizer: str = "speech_tokenizer_v3_25hz",
        codebook_size: int = 6561,
        delay_tokens: int = 10,
        sample_rate: int = SAMPLE_RATE,
        skip_bad: bool = False,
    ) -> None:
        sizes = {
            "codebook_size": (codebook_size, 1),
            "sample_rate": (sample_rate, 1),
            "delay_tokens": (delay_tokens, 0),
        }
        for name, (value, least) in sizes.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.source, self.out = Path(source), Path(out)
        self.audio_root = Path(source).parent if audio_root is None else Path(audio_root)
        self.tokenizer, self.codebook_size, self.delay_tokens = tokenizer, codebook_size, delay_tokens
        self.sample_rate, self.skip_bad = sample_rate, skip_bad

    def run(self) -> dict[str, Any]:
        """Write what is missing; the counts, also in ``summary.json``.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: Lines are bad and ``skip_bad`` is not set, no line is good, or the folder was made of another
                file or with other arguments.
        """
        if not self.source.is_file():
            raise FileNotFoundError(f"{self.source} does not exist; name a JSON-lines file")
        settings = self._settings()
        bad = self.check()
        self._judge(bad)
        write_settings(self.out, settings)
        with DialogueWriter(self.out) as writer:
            for number, parsed in self._parsed(skip=bad):
                name = self._name(parsed, number)
                if name not in writer.done:
                    try:
                        writer.write(self._dialogue(name, parsed))
                    except BadLine as error:  # a waveform that opens but cannot be read to its end
                        bad[number] = self._told(number, error)
                        self._judge({number: bad[number]})
            if not writer.done:
                raise ValueError(f"{self.source} has no good line ({len(bad)} bad), so there is nothing to import")
        write_bad(self.out, [{"code": "FAC-I02", "text": text} for text in bad.values()])
        summary = {**count_dialogues(self.out), "bad_lines": len(bad), "delay_tokens": self.delay_tokens}
        (self.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        return summary

    def check(self) -> dict[int, str]:
        """What is wrong, by line number from 1; waveforms are opened but not read."""
        bad: dict[int, str] = {}
        names: dict[str, int] = {}
        for number, line in self._lines():
            try:
                parsed = parse_line(line, self.audio_root, self.codebook_size)
                for turn in parsed.turns:
                    self._check_turn(turn)
                name = self._name(parsed, number)
                if name in names:
                    raise BadLine("id", name, f"line {names[name]} has it too; ids must be unique")
                names[name] = number
            except BadLine as error:
                bad[number] = self._told(number, error)
        return bad

    def _check_turn(self, turn: JsonTurn) -> None:
        if turn.codes is not None and turn.delay != self.delay_tokens:
            raise BadLine(
                f"{turn.field}.token",
                f"{turn.delay} x {AUDIO_BOS}, ...",
                f"{self.delay_tokens} are due before the first speech token; give delay_tokens if all lines are so",
            )
        if turn.path is not None:
            seconds = _duration(turn)
            if turn.pads is not None and abs(turn.pads - pad_count(seconds)) > 1:
                raise BadLine(
                    f"{turn.field}.token",
                    f"{turn.pads} x {AUDIO_PAD}",
                    f"{turn.path} lasts {seconds:.2f} s, which are {pad_count(seconds)}: it is another waveform",
                )

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of the lines that are not blank."""
        with self.source.open("rb") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())

    def _parsed(self, skip: Iterable[int]) -> Iterator[tuple[int, JsonDialogue]]:
        from rich.console import Console
        from rich.progress import track

        left_out, console = set(skip), Console(stderr=True)
        total = sum(1 for _ in self._lines())
        hidden = not console.is_terminal
        for number, line in track(self._lines(), "Dialogues", total, transient=True, disable=hidden, console=console):
            if number not in left_out:
                yield number, parse_line(line, self.audio_root, self.codebook_size)

    def _judge(self, bad: dict[int, str]) -> None:
        """Warn of bad lines, or end the job."""
        if bad and not self.skip_bad:
            told = [*list(bad.values())[:SHOWN], *([f"and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else [])]
            raise ValueError(
                "\n".join([f"{self.source} has {len(bad)} bad line(s); skip_bad=True leaves them out", *told])
            )
        for text in bad.values():
            log.warning("%s", text)

    def _told(self, number: int, error: BadLine) -> str:
        return f"{self.source}, line {number}: {error}"

    def _name(self, parsed: JsonDialogue, number: int) -> str:
        return parsed.id if parsed.id is not None else f"{self.source.stem}-{number}"

    def _dialogue(self, name: str, parsed: JsonDialogue) -> Dialogue:
        turns = tuple(self._turn(turn) for turn in parsed.turns)
        said = any(turn.role == "assistant" and (turn.path or turn.codes is not None) for turn in parsed.turns)
        of_mode = S2M_PROMPT if said else S2T_PROMPT
        return Dialogue(name, turns, None if parsed.system == of_mode else parsed.system)

    def _turn(self, turn: JsonTurn) -> Turn:
        role: Any = turn.role
        if turn.codes is not None:
            return Turn(role, turn.text, codes=TurnCodes(self.tokenizer, turn.codes[:, None], FRAME_RATE))
        if turn.path is None:
            return Turn(role, turn.text)
        return Turn(role, turn.text, _read(turn, self.sample_rate), self.sample_rate)

    def _settings(self) -> dict[str, Any]:
        """What the folder is made of; refused where it was made of something else: a mixture would be neither."""
        with self.source.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        settings = {
            "source": content,
            "codes": [self.tokenizer, self.codebook_size, self.delay_tokens],
            "sample_rate": self.sample_rate,
        }
        check_settings(self.out, settings)
        return settings


def _duration(turn: JsonTurn) -> float:
    """Seconds of a turn's waveform, from its header."""
    import soundfile

    try:
        info = soundfile.info(turn.path)
    except soundfile.LibsndfileError as error:
        raise BadLine(f"{turn.field}.path", str(turn.path), f"no audio file ({error})") from error
    if not info.frames:
        raise BadLine(f"{turn.field}.path", str(turn.path), "the waveform is empty")
    return float(info.frames / info.samplerate)


def _read(turn: JsonTurn, sample_rate: int) -> np.ndarray:
    """Mono samples ``(S,)`` float32 of a turn's waveform at ``sample_rate`` Hz."""
    import soundfile

    try:
        samples, rate = soundfile.read(turn.path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadLine(f"{turn.field}.path", str(turn.path), f"cannot be read ({error})") from error
    if not len(samples) or not np.isfinite(samples).all():
        raise BadLine(f"{turn.field}.path", str(turn.path), "no samples, or some that are not finite")
    return resample(samples.mean(axis=1), rate, sample_rate)
