"""A sound file against what a manifest tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.header import AudioHeader, is_cut_short, open_audio
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.samples import judge_samples, scan_samples

__all__ = ["AudioReport", "DeclaredAudio", "check_audio", "check_declared"]


@dataclass(frozen=True)
class DeclaredAudio:
    """What a manifest tells of a sound file."""

    sample_rate: int  # Hz
    frames: int  # samples of each channel
    channels: int  # of the file


@dataclass(frozen=True)
class AudioReport:
    """What was found out about a sound file."""

    header: AudioHeader | None  # None where it does not open
    problems: tuple[BadData, ...]


def check_declared(
    header: AudioHeader,
    declared: DeclaredAudio,
    where: str,
    limits: IntakeLimits,
    source: str | Path | bytes | None = None,
) -> BadData | None:
    """What of a file is not as the manifest says, if anything is: FAC-A05, A07, A08, A09, A13.

    Args:
        header: Of the file.
        declared: What the manifest says.
        where: For messages.
        limits: Of the difference.
        source: The file, to tell one that was cut short from one that was changed; not looked at when None.
    """
    told, rate = declared.sample_rate, header.sample_rate
    if rate != told and not limits.resample:
        value, rule = f"{header.frames} samples at {rate} Hz", f"{declared.frames} at {told} Hz, as its manifest says"
        return bad_data("FAC-A08", f"{where}, sampling_rate", value, rule)
    lacking = declared.frames / told - header.seconds
    if abs(lacking) > limits.frame_tolerance + 1e-9:
        cut = is_cut_short(source, header, where) if lacking > 0 and source is not None else None
        rule = f"{declared.frames / told:.3f} s ({declared.frames} samples) give or take {limits.frame_tolerance:g} s"
        value = f"{header.seconds:.3f} s ({header.frames} samples)"
        return cut or bad_data("FAC-A09", f"{where}, num_samples", value, rule)
    if header.channels != declared.channels:
        rule = f"{declared.channels}, as its manifest says"
        return bad_data("FAC-A13", f"{where}, channels", header.channels, rule)
    return None


def check_audio(
    source: str | Path | bytes,
    where: str,
    limits: IntakeLimits,
    declared: DeclaredAudio | None = None,
    decode: bool = True,
) -> AudioReport:
    """All that can be said of a sound file: header, manifest, and every sample where ``decode``.

    Args:
        source: A file, or its bytes.
        where: For messages.
        limits: What is accepted.
        declared: What a manifest says; the file stands for itself when None.
        decode: Look at the samples too, block by block.
    """
    header = None
    try:
        with open_audio(source, where, limits) as (file, header):
            problem = _against(source, header, declared, where, limits)
            if problem is not None:
                return AudioReport(header, (problem,))
            if not decode:
                return AudioReport(header, ())
            stats, _ = scan_samples(file, header, where, limits)
            return AudioReport(header, tuple(judge_samples(stats, where, limits)))
    except BadData as problem:
        return AudioReport(header, (problem,))


def _against(
    source: str | Path | bytes, header: AudioHeader, declared: DeclaredAudio | None, where: str, limits: IntakeLimits
) -> BadData | None:
    # A manifest may have been made of the file after it was cut.
    if header.format in ("WAV", "WAVEX") and (cut := is_cut_short(source, header, where)) is not None:
        return cut
    if declared is not None:
        return check_declared(header, declared, where, limits, source)
    if header.channels != limits.channels:
        return bad_data("FAC-A13", f"{where}, channels", header.channels, f"{limits.channels}")
    if header.seconds < limits.min_seconds - 1e-6:
        rule = f"at least {limits.min_seconds:g} s"
        return bad_data("FAC-A14", f"{where}, duration", f"{header.seconds:.3f} s", rule)
    return None
