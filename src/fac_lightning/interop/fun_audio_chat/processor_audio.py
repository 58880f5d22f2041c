"""The audios of a call: waveforms, or JSON that names a file, speech tokens or both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fac_lightning.resampling import resample

__all__ = ["list_audios", "read_audio"]


def list_audios(audio: Any) -> list[Any]:
    """The audios of a call, one or several.

    Raises:
        ValueError: It is an array of several rows, whose meaning nobody can tell.
    """
    array = isinstance(audio, np.ndarray | Tensor)
    if isinstance(audio, str | Mapping) or (array and audio.ndim == 1):
        return [audio]
    if array or not isinstance(audio, Iterable):
        raise ValueError(
            f"audio is {type(audio).__name__} of shape {tuple(getattr(audio, 'shape', ()))}; give a mono waveform (S,) "
            "or a list of audios"
        )
    return list(audio)


def read_audio(
    given: Any, sample_rate: int, given_rate: int | None, where: str
) -> tuple[np.ndarray | None, str | None]:
    """Waveform ``(S,)`` float32 of one audio at ``sample_rate`` Hz and its written speech tokens; one may be None.

    Args:
        given: Waveform, or a mapping or JSON with "path" (also "wav_path"), "token" or both.
        sample_rate: Hz of the result.
        given_rate: Hz of a waveform given; ``sample_rate`` when None.
        where: Names the audio in messages.

    Raises:
        ValueError: It is none of these, the file cannot be read, or a waveform is not mono, empty or not finite.
    """
    if isinstance(given, str):
        given = _parsed(given, where)
    if not isinstance(given, Mapping):
        return resample(_mono(given, where), given_rate or sample_rate, sample_rate), None
    path, tokens = given.get("path") or given.get("wav_path") or "", given.get("token")
    if not isinstance(path, str | Path) or not isinstance(tokens, str | None) or not (path or tokens):
        raise ValueError(
            f"{where}: {str(dict(given))[:80]} names neither a waveform nor speech tokens; give 'path', 'token' or "
            "both, as texts"
        )
    return (_read_file(Path(path), sample_rate, where) if path else None), tokens


def _parsed(text: str, where: str) -> Any:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: {text[:80]!r} is not JSON ({error}); give a waveform, or "
            '{"path": "speech.wav"}, with "token" where the speech tokens are known'
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f'{where}: {text[:80]!r} is no JSON object; write {{"path": ..., "token": ...}}')
    return content


def _read_file(path: Path, sample_rate: int, where: str) -> np.ndarray:
    """Samples of a file, mixed down to mono."""
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise ValueError(f"{where}: {path} cannot be read as audio ({error})") from error
    return resample(_mono(samples.mean(axis=1), f"{where} ({path})"), rate, sample_rate)


def _mono(samples: Any, where: str) -> np.ndarray:
    """Checked samples ``(S,)`` float32."""
    array = np.asarray(samples, dtype=np.float32)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(
            f"{where}: a waveform of shape {array.shape}, finite: {bool(np.isfinite(array).all())}; give finite mono "
            "samples (S,), at least one"
        )
    return array
