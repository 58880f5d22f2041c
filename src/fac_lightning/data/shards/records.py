"""What the manifest of a shard says of a dialogue: the cut of its dialogues folder, its data told by placeholders.

Beside what lhotse wants, a supervision has ``code_frames``, the frames of the dialogue's code grid that are its own
(those of all turns follow one another), and the dialogue has ``codes_of``, the name and rate of their tokenizer. A
turn with ``code_frames`` that is not ``spoken`` came as codes, without audio. Where an encoder has heard the user, a
turn has ``feature_samples``, its samples at the encoder's rate, and the dialogue has ``features_of``. Where texts were
tokenised, a turn has ``text_ids``, the number of its tokens, and the dialogue has ``texts_of``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from fac_lightning.data.intake.cases import bad_data

__all__ = [
    "CODES",
    "FEATURES",
    "RECORDING",
    "REPLIES",
    "TEXTS",
    "TOLD",
    "TOLD_OF_TURNS",
    "CodesOf",
    "array_placeholder",
    "audio_placeholder",
    "shard_record",
]

RECORDING, REPLIES, CODES = "recording", "target_audio", "codes"
FEATURES = "user_features"  # lhotse's cuts have features of their own, of another kind
TEXTS = "text_tokens"
#: what the manifest of a shard says of a dialogue, and of a turn, beside the cut of the dialogues folder
TOLD = frozenset({CODES, "codes_of", FEATURES, "features_of", TEXTS, "texts_of"})
TOLD_OF_TURNS = frozenset({"code_frames", "feature_samples", "text_ids"})


@dataclass(frozen=True)
class CodesOf:
    """The tokenizer that made the codes of a folder."""

    tokenizer: str  # as in TurnCodes: a name, or the fingerprint
    frame_rate: float  # Hz
    fingerprint: str | None = None  # where it was there when the shards were written
    largest: int | None = None  # code that it can give


def audio_placeholder(name: str, rate: int, num_samples: int) -> dict[str, Any]:
    """A lhotse recording whose samples stand in a tar.

    It has its own length. (lhotse's own writer stamps the length of the question on the answer's recording.)
    """
    return {
        "id": name,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": rate,
        "num_samples": num_samples,
        "duration": num_samples / rate,
        "channel_ids": [0],
    }


def array_placeholder(shape: tuple[int, ...]) -> dict[str, Any]:
    """A lhotse array whose numbers stand in a tar."""
    return {"storage_type": "shar", "storage_path": "", "storage_key": "", "shape": list(shape)}


def shard_record(
    cut: Any,
    audio: Mapping[str, Mapping[str, Any]],
    codes: Mapping[int, np.ndarray],
    codes_of: CodesOf | None,
    heard: Mapping[int, tuple[np.ndarray, int]] | None = None,
    features_of: Mapping[str, Any] | None = None,
    texts: Sequence[np.ndarray] = (),
    texts_of: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The line of a cut in the manifest of a shard, as JSON values.

    Args:
        cut: Of a dialogues folder.
        audio: Placeholder by field; sides without one have no audio in the shard.
        codes: Codes ``(T, Q)`` by turn.
        codes_of: Whose they are.
        heard: Features ``(T, C)`` by turn, and its samples at the encoder's rate.
        features_of: Whose they are.
        texts: Token ids ``(T,)`` of every turn; none where texts were not tokenised.
        texts_of: Whose they are.

    Raises:
        BadData: The id cannot be the name of a file in a tar.
    """
    check_id(cut.id)
    record: dict[str, Any] = cut.to_dict()
    custom = {k: v for k, v in (record.get("custom") or {}).items() if k not in TOLD | {REPLIES}}
    record["recording"] = audio.get(RECORDING)
    record["start"] = 0.0
    if RECORDING in audio:
        record["duration"] = audio[RECORDING]["duration"]
    else:
        record.pop("recording")
    if REPLIES in audio:
        custom |= {REPLIES: dict(audio[REPLIES]), f"{REPLIES}_unaligned": True}
    else:
        custom.pop(f"{REPLIES}_unaligned", None)
    if codes and codes_of is not None:
        custom[CODES] = array_placeholder((sum(map(len, codes.values())), next(iter(codes.values())).shape[1]))
        custom["codes_of"] = {"tokenizer": codes_of.tokenizer, "frame_rate": codes_of.frame_rate}
    heard = heard or {}
    if heard:
        shapes = [features.shape for features, _ in heard.values()]
        custom[FEATURES] = array_placeholder((sum(frames for frames, _ in shapes), shapes[0][1]))
        custom["features_of"] = dict(features_of or {})
    if texts_of is not None:
        custom[TEXTS] = array_placeholder((sum(map(len, texts)),))
        custom["texts_of"] = dict(texts_of)
    for i, supervision in enumerate(record["supervisions"]):
        own = {k: v for k, v in (supervision.get("custom") or {}).items() if k not in TOLD_OF_TURNS | {CODES}}
        if i in heard:
            own["feature_samples"] = heard[i][1]
        if i in codes:
            own["code_frames"] = len(codes[i])
        if texts_of is not None:
            own["text_ids"] = len(texts[i])
        supervision["custom"] = own
    record["custom"] = custom
    return record


def check_id(name: str) -> None:
    """Refuse an id that lhotse would not find again in a tar.

    Raises:
        BadData: Such as ``a//b``, or one with a line break.
    """
    path = PurePosixPath(f"{name}.flac")
    if str(path.parent / path.stem) != name or any(ord(c) < 32 for c in name):
        rule = "a relative path without '//', './' at its beginning, or control characters"
        what = "id that cannot be the name of a file in a tar"
        raise bad_data("FAC-D12", "the dialogues", json.dumps(name), rule, "Rename the dialogue", what)
