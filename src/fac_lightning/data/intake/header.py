"""What a sound file says of itself, read before anything is decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.limits import MEBIBYTE, IntakeLimits
from fac_lightning.data.intake.lines import nearest_names

__all__ = ["AudioHeader", "check_header", "is_cut_short", "open_audio", "read_header", "undecoded"]

# How sound files begin; what begins so and does not open has a broken header.
MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"ID3", b".snd", b"caff", b"riff", b"\xff\xfb", b"NIST")
DECODED_BYTES = 4  # of a sample, as float32


@dataclass(frozen=True)
class AudioHeader:
    """A sound file's own words."""

    format: str  # of libsndfile: WAV, FLAC, OGG ...
    sample_rate: int  # Hz
    channels: int
    frames: int  # samples of each channel
    num_bytes: int  # of the file

    @property
    def seconds(self) -> float:
        """How long it claims to be."""
        return self.frames / self.sample_rate


class _Bytes(io.BytesIO):
    """Bytes as a file; damaged ones send libsndfile before their beginning, which it must be told and not we."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return self.tell()


@contextmanager
def open_audio(source: str | Path | bytes, where: str, limits: IntakeLimits) -> Iterator[tuple[Any, AudioHeader]]:
    """An open ``soundfile.SoundFile`` and its header, which keeps the limits; nothing is decoded yet.

    Args:
        source: A file, or its bytes.
        where: For messages.
        limits: What a header may claim.

    Raises:
        BadData: FAC-A01 to A04 and A07 where it cannot be opened, A14 to A18 where the header is refused.
    """
    import soundfile

    try:
        file = soundfile.SoundFile(_Bytes(source) if isinstance(source, bytes) else str(source))
    except (soundfile.LibsndfileError, OSError) as error:
        raise _unopened(source, where, error) from error
    with file:
        num_bytes = len(source) if isinstance(source, bytes) else os.path.getsize(str(source))
        header = AudioHeader(file.format, file.samplerate, file.channels, file.frames, num_bytes)
        problem = check_header(header, where, limits)
        if problem is not None:
            raise problem
        yield file, header


def read_header(source: str | Path | bytes, where: str, limits: IntakeLimits) -> AudioHeader:
    """The header of a sound file; see ``open_audio``."""
    with open_audio(source, where, limits) as (_, header):
        return header


def check_header(header: AudioHeader, where: str, limits: IntakeLimits) -> BadData | None:
    """What is wrong with a header by itself, if anything is: the most dangerous first."""
    rate, channels, frames = header.sample_rate, header.channels, header.frames
    if not limits.min_sample_rate <= rate <= limits.max_sample_rate:
        rule = f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz"
        return bad_data("FAC-A18", f"{where}, sample rate", f"{rate} Hz", rule)
    if channels > limits.max_channels:
        return bad_data("FAC-A18", f"{where}, channels", channels, f"at most {limits.max_channels}")
    if frames > limits.max_frames:
        value = "an unknown number of samples" if frames >= 2**63 - 1 else f"{frames} samples"
        return bad_data("FAC-A16", f"{where}, samples", value, f"at most {limits.max_frames} (max_frames)")
    decoded = frames * channels * DECODED_BYTES
    if decoded > limits.free_bytes and decoded > limits.max_expansion * header.num_bytes:
        value = f"{header.num_bytes} bytes that become {decoded / MEBIBYTE:.0f} MiB ({header.seconds:.0f} s)"
        rule = f"at most {limits.max_expansion:g} bytes of sound for each (max_expansion)"
        return bad_data("FAC-A17", f"{where}, samples", value, rule)
    if header.seconds > limits.max_seconds:
        rule = f"at most {limits.max_seconds:g} s"
        return bad_data("FAC-A15", f"{where}, duration", f"{header.seconds:.2f} s", rule)
    if not frames and header.format == "OGG":
        return bad_data("FAC-A07", where, f"{header.num_bytes} bytes without the last page")
    if frames <= 1:
        return bad_data("FAC-A14", f"{where}, samples", frames, f"at least {limits.min_seconds:g} s")
    return None


def undecoded(header: AudioHeader, where: str, got: int, cause: str = "") -> BadData:
    """What a file is that gives ``got`` samples where more are due."""
    code = {"WAV": "FAC-A05", "WAVEX": "FAC-A05", "RF64": "FAC-A05", "OGG": "FAC-A07"}.get(header.format, "FAC-A06")
    value = f"{got} samples" + (f" ({cause.strip().rstrip('.')})" if cause else "")
    return bad_data(code, where, value, f"the {header.frames} that its header names")


def is_cut_short(source: str | Path | bytes, header: AudioHeader, where: str) -> BadData | None:
    """FAC-A05 or A07 where a file ends before its own structure says: a wav's data chunk, an ogg's last page."""
    if header.format in ("WAV", "WAVEX"):
        due = _wav_bytes(source)
        if due is not None and due > header.num_bytes:
            return bad_data("FAC-A05", where, f"{header.num_bytes} bytes", f"{due}, as its header says")
    if header.format == "OGG" and not _has_last_page(source):
        return bad_data("FAC-A07", where, f"{header.num_bytes} bytes without the last page")
    return None


def _read(source: str | Path | bytes, offset: int, count: int) -> bytes:
    if isinstance(source, bytes):
        return source[offset : offset + count]
    with open(source, "rb") as file:
        file.seek(offset)
        return file.read(count)


def _wav_bytes(source: str | Path | bytes) -> int | None:
    """How many bytes a wav file needs up to the end of its data, or None where that is not told."""
    offset = 12
    for _ in range(64):  # chunks before the data are few
        chunk = _read(source, offset, 8)
        if len(chunk) < 8:
            return None
        size = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"data":
            # streams that were written without seeking back say 0 or the largest number: not known
            return None if size in (0, 2**32 - 1) or size >= 2**31 - 1 - 4096 else offset + 8 + size
        offset += 8 + size + size % 2
    return None


def _has_last_page(source: str | Path | bytes) -> bool:
    """Whether the last page of an ogg file is marked as the last of its stream."""
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    tail = _read(source, max(0, size - 70_000), 70_000)  # a page has 65307 bytes at most
    place = tail.rfind(b"OggS")
    return place >= 0 and len(tail) > place + 5 and bool(tail[place + 5] & 4)


def _unopened(source: str | Path | bytes, where: str, error: Exception) -> BadData:
    """Why a file does not open."""
    if not isinstance(source, bytes):
        if not os.path.exists(source):
            near = nearest_names(source)
            advice = f"Put it there or correct the path; near it lie {', '.join(near)}" if near else None
            return bad_data("FAC-A01", where, "no file of this name", advice=advice)
        if not os.path.isfile(source):
            return bad_data("FAC-A01", where, "something that is no file")
    try:
        begin = _read(source, 0, 64)
    except OSError as refused:
        return bad_data("FAC-A01", where, refused.strerror or str(refused))
    if not begin:
        return bad_data("FAC-A02", where, "0 bytes")
    cause = str(error).rsplit(": ", 1)[-1].rstrip(".")
    if begin.startswith(MAGIC):
        size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
        if begin.startswith(b"OggS") and size > 4 * len(begin) and not _has_last_page(source):
            return bad_data("FAC-A07", where, f"{size} bytes without the last page")
        return bad_data("FAC-A04", where, f"{size} bytes ({cause})")
    return bad_data("FAC-A03", where, f"a file that begins with {begin[:24]!r}")
