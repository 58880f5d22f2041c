"""Read and resample audio, refusing what the manifest does not describe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fac_lightning.resampling import resample

__all__ = ["Span", "check_sources", "read_span"]

SAFE_SOURCES = ("file", "memory", "url")


@dataclass(frozen=True)
class Span:
    """A piece of a lhotse recording."""

    recording: Any
    first: int  # samples, at the recording's rate
    count: int  # samples, at the recording's rate

    def num_samples(self, sample_rate: int) -> int:
        """Samples that ``read_span`` gives at ``sample_rate`` Hz."""
        rate: int = self.recording.sampling_rate
        return -(-self.count * sample_rate // rate)


def check_sources(recording: Any) -> None:
    """Refuse sources that run a program.

    Raises:
        ValueError: A source is a shell command, or a file name that a shell would read as a pipe.
    """
    for source in recording.sources:
        piped = isinstance(source.source, str) and source.source.strip().startswith("|")
        piped = piped or (isinstance(source.source, str) and source.source.strip().endswith("|"))
        if source.type not in SAFE_SOURCES or piped:
            raise ValueError(
                f"recording {recording.id!r} has a source of type {source.type!r} ({str(source.source)[:80]!r}): "
                f"manifests that run commands are refused. Store the audio as files; allowed: {', '.join(SAFE_SOURCES)}"
            )


def read_span(span: Span, sample_rate: int | None = None) -> np.ndarray:
    """Mono samples ``(S,)`` float32 of a span.

    lhotse pads or trims a file that is up to half a second shorter or longer than its manifest says, and takes
    a wrong sample rate as it is. Half a second is twelve speech tokens, so files are read here, and must fit.

    Args:
        span: What to read.
        sample_rate: Resample to this rate, Hz; as stored when None.

    Raises:
        ValueError: The audio is missing, does not fit the manifest, is not finite, or comes out of a program.
    """
    recording, rate = span.recording, span.recording.sampling_rate
    check_sources(recording)
    source = recording.sources[0]
    if source.type == "file" and not recording.transforms:
        samples = _read_file(span, source.source)
    else:
        samples = recording.load_audio(offset=span.first / rate, duration=span.count / rate).mean(axis=0)
    if len(samples) != span.count or not np.isfinite(samples).all():
        raise ValueError(
            f"recording {recording.id!r}: {len(samples)} samples read where {span.count} are declared, "
            f"finite: {bool(np.isfinite(samples).all())}; make the audio or its manifest again"
        )
    return resample(np.asarray(samples, dtype=np.float32), rate, sample_rate or rate)


def _read_file(span: Span, path: str) -> np.ndarray:
    import soundfile

    recording = span.recording
    try:
        with soundfile.SoundFile(path) as file:
            if file.samplerate != recording.sampling_rate or file.frames != recording.num_samples:
                raise ValueError(
                    f"{path} has {file.frames} samples at {file.samplerate} Hz, its manifest says "
                    f"{recording.num_samples} at {recording.sampling_rate} Hz; make the manifest again"
                )
            file.seek(span.first)
            samples: np.ndarray = file.read(span.count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"recording {recording.id!r}: {error}") from error
    return np.asarray(samples.mean(axis=1))
