"""Pairs in the ranking form of LLaMA-Factory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fac_lightning.preferences.manifest_pairs import ManifestPairs

__all__ = ["LlamaFactoryPairs"]

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@dataclass(frozen=True)
class LlamaFactoryPairs(ManifestPairs):
    """Take pairs of a file in LLaMA-Factory's ranking form: alpaca (``instruction``) or sharegpt (``conversations``).

    ``<audio>`` marks take the files of ``audios`` in order; images and videos are refused.

    Source: https://github.com/hiyouga/LLaMA-Factory/blob/main/data/README.md
    """

    def record(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line in the form of ``ManifestPairs``.

        Raises:
            KeyError: It has neither form, or a message's role is unknown.
            ValueError: A message shows pictures, or marks and files do not fit.
        """
        files = iter(line.get("audios") or ())
        if "instruction" in line:
            found = _alpaca(line, files)
        elif "conversations" in line or "messages" in line:
            found = _sharegpt(line, files)
        else:
            raise KeyError("neither 'instruction' (alpaca) nor 'conversations' (sharegpt)")
        if (left := next(files, None)) is not None:
            raise ValueError(f"the sound file {left!r} has no <audio> mark")
        return found


def _alpaca(line: Mapping[str, Any], files: Iterator[str]) -> dict[str, Any]:
    taken = ("instruction", "input", "history", "chosen", "rejected", "audios")
    last = "\n".join(part for part in (line["instruction"], line.get("input")) if part)
    past = [
        turn for asked, answered in line.get("history") or () for turn in (("user", asked), ("assistant", answered))
    ]
    prompt = [{"role": role, **_message(text, files)} for role, text in [*past, ("user", last)]]
    answers = {side: _message(line[side], files) for side in ("chosen", "rejected")}
    return {**{name: line[name] for name in line if name not in taken}, "prompt": prompt, **answers}


def _sharegpt(line: Mapping[str, Any], files: Iterator[str]) -> dict[str, Any]:
    taken = ("conversations", "messages", "chosen", "rejected", "audios")
    found = {name: line[name] for name in line if name not in taken}
    turns = []
    for message in line.get("conversations") or line["messages"]:
        role, text = ROLES[message.get("from") or message["role"]], _text(message)
        if role == "system":
            found["system"] = text
        else:
            turns.append({"role": role, **_message(text, files)})
    answers = {side: _message(_text(line[side]), files) for side in ("chosen", "rejected")}
    return {**found, "prompt": turns, **answers}


def _text(message: Mapping[str, Any]) -> Any:
    return message["value"] if "value" in message else message["content"]


def _message(text: Any, files: Iterator[str]) -> dict[str, Any]:
    if not isinstance(text, str) or "<image>" in text or "<video>" in text:
        raise ValueError(f"the message {str(text)[:80]!r} is no text or shows pictures, which nothing here sees")
    marks = text.count("<audio>")
    if marks > 1:
        raise ValueError(f"a message has {marks} <audio> marks; a turn has one sound: join the files")
    if not marks:
        return {"text": text}
    file = next(files, None)
    if file is None:
        raise ValueError("there are more <audio> marks than files in 'audios'")
    return {"text": text.replace("<audio>", "").strip(), "audio": file}
