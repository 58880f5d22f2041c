"""Read and resample audio, refusing what the manifest does not describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.audio import DeclaredAudio, check_declared
from fac_lightning.data.intake.cases import WARNINGS, bad_data
from fac_lightning.data.intake.header import AudioHeader, open_audio, read_header, undecoded
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.samples import judge_samples, measure_samples
from fac_lightning.data.intake.sources import check_command
from fac_lightning.resampling import resample

__all__ = ["Span", "check_sources", "fit_span", "probe_span", "read_span", "to_int16"]


@dataclass(frozen=True)
class Span:
    """A piece of a lhotse recording."""

    recording: Any
    first: int  # samples, at the recording's rate
    count: int  # samples, at the recording's rate
    channel: int | None = None  # of a recording that has several; None where it has one

    def num_samples(self, sample_rate: int) -> int:
        """Samples that ``read_span`` gives at ``sample_rate`` Hz, of a span that fits its file."""
        rate: int = self.recording.sampling_rate
        return -(-self.count * sample_rate // rate)


def check_sources(recording: Any, limits: IntakeLimits | None = None) -> None:
    """Refuse sources that run a program.

    Raises:
        BadData: FAC-D10: a source is a shell command, or a file name that a shell would read as a pipe.
    """
    for source in recording.sources:
        problem = check_command(
            source.type, source.source, f"recording {recording.id!r}, field 'sources'", limits or IntakeLimits()
        )
        if problem is not None:
            raise problem


def read_span(
    span: Span,
    sample_rate: int | None = None,
    limits: IntakeLimits | None = None,
    warn: Callable[[BadData], object] | None = None,
) -> np.ndarray:
    """Mono samples ``(S,)`` float32 of a span.

    lhotse pads or trims a file that is up to half a second shorter or longer than its manifest says, and takes
    a wrong sample rate as it is. Half a second is twelve speech tokens, so files are read here, and must fit: of a
    file that is one frame shorter at most, what is there is given, and nothing is added.

    Args:
        span: What to read.
        sample_rate: Resample to this rate, Hz; as stored when None.
        limits: How well it must fit; the default when None.
        warn: Is told of audio that is silent or clipped.

    Raises:
        BadData: The audio is missing, does not fit the manifest, is not finite, or comes out of a program.
    """
    limits = limits or IntakeLimits()
    check_sources(span.recording, limits)
    where = _where(span)
    source = _own_source(span)
    if source is None:
        samples = _read_by_lhotse(span, where)
    else:
        with open_audio(source, where, limits) as (file, header):
            span = fit_span(span, header, limits, source)
            samples = _decode(file, header, span, where)
    for problem in judge_samples(measure_samples(samples), where, limits):
        if problem.code not in WARNINGS:
            raise problem
        if warn is not None:
            warn(problem)
    rate = span.recording.sampling_rate
    return resample(samples, rate, sample_rate or rate)


def probe_span(span: Span, limits: IntakeLimits | None = None) -> AudioHeader | None:
    """The header of the file that a span lies in; None where lhotse alone can read it.

    Raises:
        BadData: The file cannot be opened, its header is absurd, or it would run a program.
    """
    limits = limits or IntakeLimits()
    check_sources(span.recording, limits)
    source = _own_source(span)
    return None if source is None else read_header(source, _where(span), limits)


def fit_span(span: Span, header: AudioHeader, limits: IntakeLimits, source: str | bytes | None = None) -> Span:
    """The span as its file has it: at the file's rate where that may differ, and not beyond the file's end.

    Args:
        span: From a manifest.
        header: Of the file.
        limits: How well the two must fit.
        source: The file, to tell one that was cut short; not looked at when None.

    Raises:
        BadData: FAC-A05 to A09, A13: they do not fit.
    """
    recording, where = span.recording, _where(span)
    channels = _source_of(span).channels
    declared = DeclaredAudio(recording.sampling_rate, recording.num_samples, len(channels))
    if (problem := check_declared(header, declared, where, limits, source)) is not None:
        raise problem
    if span.channel is None and recording.num_channels != 1:
        rule = "one, or a cut that chooses its channel"
        raise bad_data("FAC-A13", f"{where}, channels", f"{recording.num_channels} to mix into one", rule)
    if header.sample_rate != recording.sampling_rate:
        ratio = header.sample_rate / recording.sampling_rate
        recording = replace(
            recording, sampling_rate=header.sample_rate, num_samples=header.frames, duration=header.seconds
        )
        span = replace(span, recording=recording, first=round(span.first * ratio), count=round(span.count * ratio))
    beyond = span.first + span.count - header.frames
    if beyond <= 0:
        return span
    if beyond > limits.frame_tolerance * header.sample_rate or beyond >= span.count:
        value, rule = f"samples {span.first} to {span.first + span.count}", f"within the {header.frames} that are there"
        raise bad_data("FAC-A09", f"{where}, samples", value, rule)
    return replace(span, count=span.count - beyond)


def _where(span: Span) -> str:
    recording = span.recording
    source = _source_of(span)
    named = f"{source.source}, " if source is not None and isinstance(source.source, str) else ""
    return f"{named}recording {recording.id!r}"


def _source_of(span: Span) -> Any:
    """The source that has the span's channel."""
    sources = span.recording.sources
    return next((source for source in sources if span.channel in source.channels), sources[0])


def _own_source(span: Span) -> str | bytes | None:
    """A file or its bytes that are read here; None for addresses and for transforms, which lhotse serves."""
    source = _source_of(span)
    piped = isinstance(source.source, str) and source.source.strip().startswith(("|", "pipe:"))
    if span.recording.transforms or source.type not in ("file", "memory") or piped:
        return None
    found: str | bytes = source.source
    return found


def _decode(file: Any, header: AudioHeader, span: Span, where: str) -> np.ndarray:
    import soundfile

    try:
        if span.first:
            file.seek(span.first)
        samples: np.ndarray = file.read(span.count, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise undecoded(header, where, 0, error.error_string) from error
    if len(samples) < span.count:
        raise undecoded(header, where, span.first + len(samples))
    return samples if samples.ndim == 1 else samples[:, _source_of(span).channels.index(span.channel)].copy()


def _read_by_lhotse(span: Span, where: str) -> np.ndarray:
    recording, rate = span.recording, span.recording.sampling_rate
    channels = recording.num_channels if span.channel is None else 1
    if channels != 1:
        rule = "one, or a cut that chooses its channel"
        raise bad_data("FAC-A13", f"{where}, channels", f"{channels} to mix into one", rule)
    try:
        loaded = recording.load_audio(channels=span.channel, offset=span.first / rate, duration=span.count / rate)
    except Exception as error:  # lhotse and what it calls raise many kinds
        raise bad_data("FAC-A06", where, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    if loaded.shape[1] != span.count:
        raise bad_data("FAC-A09", f"{where}, samples", f"{loaded.shape[1]} samples", f"the {span.count} of the span")
    return np.ascontiguousarray(loaded[0], dtype=np.float32)


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as the 16-bit integers that a corpus trains on and files hold."""
    whole: np.ndarray = np.round(np.clip(samples, -1.0, 32767 / 32768) * 32768).astype(np.int16)
    return whole
