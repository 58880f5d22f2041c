"""One line of Fun-Audio-Chat's training JSON, read and written.

``{"system": ..., "messages": [{"role": ..., "content": ...}], "audio": [JSON texts]}``: a content is a text, or
``<|audio_bos|><|AUDIO|><|audio_eos|>`` for the next entry of ``audio``. An entry has ``path`` (or ``wav_path``),
``token`` and ``text``. The user's has a waveform and as many ``<|audio_pad|>`` as it lasts tokens; the assistant's has
the text that is said and ``<|audio_bos|>`` (the delay of speech behind text), then tokens such as ``[AU0012]``.

The released trainer mixes ``text`` into the embeddings of its audio, so the user's is empty there. A ``transcript``,
which the released trainer does not read, keeps what the user says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.prompts import AUDIO, AUDIO_BOS, AUDIO_PAD, AUDIO_TEMPLATE, DEFAULT_SYSTEM_PROMPT

__all__ = ["FRAME_RATE", "SAMPLE_RATE", "BadLine", "JsonDialogue", "JsonTurn", "code_text", "pad_count", "parse_line"]

FRAME_RATE = 25.0  # Hz, of speech tokens
SAMPLE_RATE = 16000  # Hz, of waveforms
CODES = re.compile(rf"((?:{re.escape(AUDIO_BOS)})*)((?:\[AU\d{{4,}}\])*)")
PADS = re.compile(rf"(?:{re.escape(AUDIO_PAD)})*")


class BadLine(ValueError):
    """Why a line cannot be used: the field, what stands there, and the reason."""

    def __init__(self, field: str, value: object, reason: str) -> None:
        text = repr(value)
        super().__init__(f"{field} = {text if len(text) <= 80 else text[:77] + '...'}: {reason}")


@dataclass(frozen=True)
class JsonTurn:
    """One message, with what its audio entry says."""

    role: str  # "user" or "assistant"
    text: str
    field: str = ""  # where its audio stands, such as "audio[0]"
    path: Path | None = None  # of the waveform
    pads: int | None = None  # speech tokens that the waveform is said to last; None where nothing is said
    codes: np.ndarray | None = None  # (T,) int32, the assistant's speech
    delay: int = 0  # bos tokens before the codes


@dataclass(frozen=True)
class JsonDialogue:
    """One line."""

    id: str | None
    system: str
    turns: tuple[JsonTurn, ...]


def pad_count(seconds: float) -> int:
    """Tokens of a user's waveform, as the released code counts them."""
    return int(seconds * FRAME_RATE)


def code_text(codes: np.ndarray, delay: int) -> str:
    """Written tokens of codes ``(T,)``."""
    return AUDIO_BOS * delay + "".join(f"[AU{code:04d}]" for code in codes.tolist())


def parse_line(line: str | bytes, audio_root: Path, codebook_size: int) -> JsonDialogue:
    """What a line says, checked as far as it can be without opening a file.

    Args:
        line: JSON.
        audio_root: Where relative paths start.
        codebook_size: Tokens are ``[AU0000]`` up to below this.

    Raises:
        BadLine: It is not such a line.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        text = line if isinstance(line, str) else line.decode(errors="replace")
        raise BadLine("line", text.strip(), f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadLine("line", record, "a JSON object is due")
    messages, entries = record.get("messages"), record.get("audio") or []
    if not isinstance(messages, list) or not messages:
        raise BadLine("messages", messages, "a list of messages is due")
    if not isinstance(entries, list):
        raise BadLine("audio", entries, "a list is due")
    system, messages = _system(record, messages)
    contents = [_content(message, f"messages[{i}]") for i, message in enumerate(messages)]
    placeholders = sum(content.count(AUDIO) for _, content in contents)
    if placeholders != len(entries):
        raise BadLine("audio", f"{len(entries)} entries", f"the messages have {placeholders} {AUDIO}: one entry each")
    parsed = iter([_entry(entry, f"audio[{i}]") for i, entry in enumerate(entries)])
    turns = []
    for i, (role, content) in enumerate(contents):
        if AUDIO not in content:
            turns.append(JsonTurn(role, content))
        elif content not in (AUDIO, AUDIO_TEMPLATE):
            raise BadLine(f"messages[{i}].content", content, f"a turn is a text, or {AUDIO_TEMPLATE} alone")
        else:
            turns.append(_spoken(role, parsed, audio_root, codebook_size))
    name = record.get("id")
    return JsonDialogue(None if name is None else str(name), system, tuple(turns))


def _system(record: Mapping[str, Any], messages: list[Any]) -> tuple[str, list[Any]]:
    """System prompt and the messages of user and assistant."""
    system = record.get("system")
    if isinstance(messages[0], dict) and messages[0].get("role") == "system":
        system, messages = messages[0].get("content"), messages[1:]
    if not isinstance(system, str | None):
        raise BadLine("system", system, "a text is due")
    return system or DEFAULT_SYSTEM_PROMPT, messages  # the released template puts the default where nothing is said


def _content(message: Any, field: str) -> tuple[str, str]:
    """Role and content of a message."""
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise BadLine(field, message, "a message has the role 'user' or 'assistant', and a content")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise BadLine(f"{field}.content", content, "a text is due, or the placeholder of an audio")
    return message["role"], content


@dataclass(frozen=True)
class _Entry:
    field: str
    path: str
    token: str
    text: str
    transcript: str


def _entry(entry: Any, field: str) -> _Entry:
    """Texts of an entry of ``audio``."""
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except ValueError as error:
            raise BadLine(field, entry, f"not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise BadLine(field, entry, "a JSON object is due")
    found = {key: entry.get(key) or "" for key in ("path", "wav_path", "token", "text", "transcript")}
    for key, value in found.items():
        if not isinstance(value, str):
            raise BadLine(f"{field}.{key}", value, "a text is due")
    return _Entry(field, found["path"] or found["wav_path"], found["token"], found["text"], found["transcript"])


def _spoken(role: str, entries: Iterator[_Entry], audio_root: Path, codebook_size: int) -> JsonTurn:
    """The turn of the next entry."""
    entry = next(entries)
    token, path = f"{entry.field}.token", audio_root / entry.path if entry.path else None
    if not PADS.fullmatch(entry.token):
        if role == "user":
            raise BadLine(token, entry.token, f"the user's speech is a waveform, its tokens are {AUDIO_PAD} alone")
        codes, delay = _codes(entry.token, token, codebook_size)
        if not entry.text.strip():
            raise BadLine(f"{entry.field}.text", entry.text, "the assistant's speech needs the text that is said")
        return JsonTurn(
            role, entry.text, entry.field, codes=codes, delay=delay
        )  # codes are what is learned, so no waveform
    if path is None:
        raise BadLine(f"{entry.field}.path", entry.path, "there is no waveform, and no speech token but placeholders")
    if not path.is_file():
        raise BadLine(f"{entry.field}.path", entry.path, f"there is no file {path}")
    if role == "assistant" and not entry.text.strip():
        raise BadLine(f"{entry.field}.text", entry.text, "the assistant's speech needs the text that is said")
    pads = len(entry.token) // len(AUDIO_PAD) if entry.token else None
    return JsonTurn(role, entry.text or entry.transcript, entry.field, path, pads)


def _codes(written: str, field: str, codebook_size: int) -> tuple[np.ndarray, int]:
    """Codes ``(T,)`` and the number of bos tokens before them."""
    match = CODES.fullmatch(written)
    if match is None or not match[2]:
        known = CODES.match(written)
        rest = written[known.end() :] if known else written
        what = f"an unknown speech token at {rest[:24]!r}" if rest else "no speech token behind the delay"
        raise BadLine(field, written, f"{what}; it is {AUDIO_BOS} some times, then tokens such as [AU0012]")
    codes = np.array(match[2][3:-1].split("][AU"), dtype=np.int32)
    if codes.max() >= codebook_size:
        raise BadLine(field, f"[AU{codes.max():04d}]", f"an unknown speech token: there are {codebook_size} of them")
    return codes, len(match[1]) // len(AUDIO_BOS)
