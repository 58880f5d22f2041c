"""Sound of others: read whole or in part, mono, refused where it is not what it claims to be."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.dialogue import Role, Turn
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.resampling import resample

__all__ = ["Sound", "read_samples", "read_sound", "sound_header", "sound_of_samples", "spoken_turn"]

LOUDEST = 4.0  # times full scale; beyond it samples are no sound but numbers of another scale
FASTEST, MOST_CHANNELS = 192000, 8  # Hz and channels of sound that is meant to be heard
AGAIN = "Fetch or make it again."


@dataclass(frozen=True)
class Sound:
    """Mono samples."""

    samples: np.ndarray  # (S,) float32
    sample_rate: int  # Hz


def read_sound(
    source: Path | bytes,
    where: str,
    options: ImportOptions,
    start: float = 0.0,
    seconds: float | None = None,
    channel: int | None = None,
) -> Sound:
    """Read one channel of a file, or of the bytes of one.

    Args:
        source: The file or its content, in any format of libsndfile.
        where: For messages.
        options: Rules.
        start: Seconds from the beginning.
        seconds: How long; to the end when None.
        channel: Which one; None wants mono, or mixes where the options say so.

    Raises:
        BadData: It is missing, broken or cut, has the wrong channels, is too long, not finite, or is not as long as
            the piece that is asked for.
    """
    samples, rate = read_samples(source, where, options, start, seconds)
    return sound_of_samples(samples, rate, where, options, channel)


def read_samples(
    source: Path | bytes, where: str, options: ImportOptions, start: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Samples ``(S, C)`` float32 of all channels, and their rate in Hz; arguments are those of ``read_sound``."""
    import soundfile

    size = len(source) if isinstance(source, bytes) else _size(source, where)
    if not size:
        raise BadData("FAC-A02", "empty audio file", where, "0 bytes", "sound", AGAIN)
    try:
        with soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate, frames = file.samplerate, file.frames
            if rate > FASTEST or file.channels > MOST_CHANNELS:
                told, rule = f"{rate} Hz, {file.channels} channels", f"up to {FASTEST} Hz and {MOST_CHANNELS} channels"
                raise BadData("FAC-A18", "absurd header", where, told, rule, "Do not use the file.")
            if frames > options.max_seconds * rate:
                told, most = f"{frames / rate:.0f} s", f"at most {options.max_seconds:g} s"
                raise BadData("FAC-A15", "too long audio", where, told, most, "Cut it, or raise max_seconds.")
            first = round(start * rate)
            count = frames - first if seconds is None else round(seconds * rate)
            if not 0 <= first < frames or first + count > frames + 1 or count < 1:  # + 1: seconds are rounded
                told = f"{start:.3f} to {start + (count / rate if seconds is None else seconds):.3f} s"
                rule = f"a piece of the {frames / rate:.3f} s that there are"
                raise BadData("FAC-D08", "piece outside its recording", where, told, rule, "Make the manifest again.")
            count = min(count, frames - first)
            file.seek(first)
            samples = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadData("FAC-A03", "no sound file", where, str(error), "a format that libsndfile reads", AGAIN) from error
    if len(samples) != count:
        told, rule = f"{len(samples)} samples", f"the {count} that the header names"
        raise BadData("FAC-A05", "sound file cut short", where, told, rule, AGAIN)
    return samples, rate


def sound_header(source: Path | bytes, where: str) -> tuple[int, int]:
    """Frames and Hz that a file, or the bytes of one, claims to have.

    Raises:
        BadData: It is no sound file.
    """
    import soundfile

    try:
        told = soundfile.info(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadData("FAC-A03", "no sound file", where, str(error), "a format that libsndfile reads", AGAIN) from error
    return told.frames, told.samplerate


def sound_of_samples(
    samples: np.ndarray, sample_rate: int, where: str, options: ImportOptions, channel: int | None = None
) -> Sound:
    """Sound of samples ``(S,)`` or ``(S, C)``, checked.

    Raises:
        BadData: The channels are wrong, there is nothing, or some samples are not finite or far too loud.
    """
    if samples.ndim == 2:
        samples = _mono(samples, where, options, channel)
    if not len(samples):
        raise BadData("FAC-A14", "too short audio", where, "0 samples", "some", "Leave the turn out.")
    samples = np.asarray(samples, dtype=np.float32)
    if not np.isfinite(samples).all():
        told = f"{int((~np.isfinite(samples)).sum())} of {len(samples)}"
        raise BadData("FAC-A10", "samples that are no numbers", where, told, "finite samples", "Repair or remove it.")
    if (peak := float(np.abs(samples).max())) > LOUDEST:
        rule, advice = "samples between -1 and 1", "Store it as 16-bit integers, or divide it by its full scale."
        raise BadData("FAC-A12", "audio of another scale", where, f"a peak of {peak:g}", rule, advice)
    return Sound(samples, sample_rate)


def spoken_turn(role: Role, text: str, sound: Sound, options: ImportOptions, **custom: Any) -> Turn:
    """A turn with its sound at the rate that is asked for; samples beyond full scale are clipped, and counted."""
    rate = options.sample_rate or sound.sample_rate
    samples = resample(sound.samples, sound.sample_rate, rate)
    if clipped := int((np.abs(samples) > 1.0).sum()):
        custom = {**custom, "clipped_samples": clipped}
    return Turn(role, text, samples, rate, custom)


def _mono(samples: np.ndarray, where: str, options: ImportOptions, channel: int | None) -> np.ndarray:
    channels = samples.shape[1]
    if channel is not None:
        if channel >= channels:
            rule = f"channel {channel}, counted from 0"
            raise BadData("FAC-A13", "wrong number of channels", where, channels, rule, "Name a channel that is there.")
        return samples[:, channel]
    if channels > 1 and not options.mix_channels:
        advice = "Store the channel that is meant, or set mix_channels=true to average them."
        raise BadData("FAC-A13", "wrong number of channels", where, channels, "mono", advice)
    return samples.mean(axis=1) if channels > 1 else samples[:, 0]


def _size(file: Path, where: str) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise BadData("FAC-A01", "missing file", where, str(file), "a file that can be read", str(error)) from error
