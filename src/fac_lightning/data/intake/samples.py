"""What decoded samples say: numbers at all, silence, clipping; files decoded block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fac_lightning.data.errors import BadData
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.intake.header import DECODED_BYTES, AudioHeader, undecoded
from fac_lightning.data.intake.limits import MEBIBYTE, IntakeLimits

__all__ = ["SampleStats", "judge_samples", "measure_samples", "scan_samples"]

FULL_SCALE = 0.9999  # 16-bit full scale is 32767 / 32768
BLOCK = 2**18  # samples of a channel that are decoded at a time


@dataclass(frozen=True)
class SampleStats:
    """Sums over samples; those of two pieces add up."""

    count: int = 0
    energy: float = 0.0  # sum of squares; not finite where a sample is not
    peak: float = 0.0
    clipped: int = 0  # samples at full scale or above
    strange: int = 0  # samples that are NaN or infinite

    def __add__(self, other: SampleStats) -> SampleStats:
        return SampleStats(
            self.count + other.count,
            self.energy + other.energy,
            max(self.peak, other.peak),
            self.clipped + other.clipped,
            self.strange + other.strange,
        )


def measure_samples(samples: np.ndarray) -> SampleStats:
    """Sums over float32 samples of any shape; a pass or two, far cheaper than decoding them."""
    flat = samples.reshape(-1)
    if not flat.size:
        return SampleStats()
    with np.errstate(over="ignore", invalid="ignore"):
        energy = float(np.dot(flat, flat))  # NaN and infinity carry through
    if not math.isfinite(energy):
        finite = flat[np.isfinite(flat)]
        strange = flat.size - finite.size
        if strange:
            return SampleStats(flat.size, math.nan, float(np.abs(finite).max(initial=0.0)), 0, strange)
        energy = float(np.square(flat, dtype=np.float64).sum())
    peak = max(float(flat.max()), -float(flat.min()))
    clipped = int(np.count_nonzero(np.abs(flat) >= FULL_SCALE)) if peak >= FULL_SCALE else 0
    return SampleStats(flat.size, energy, peak, clipped)


def judge_samples(stats: SampleStats, where: str, limits: IntakeLimits) -> list[BadData]:
    """FAC-A10 where samples are no numbers; else the warnings FAC-A11 and A12."""
    place = f"{where}, samples"
    if stats.strange:
        return [bad_data("FAC-A10", place, f"{stats.strange} of {stats.count} that are NaN or infinite")]
    if not stats.count:
        return []
    level = 10 * math.log10(stats.energy / stats.count) if stats.energy > 0 else -math.inf
    if level < limits.silence:
        return [bad_data("FAC-A11", place, f"{level:.0f} dBFS", f"at least {limits.silence:g} dBFS")]
    if stats.peak > limits.max_peak:
        return [bad_data("FAC-A12", place, f"a peak of {stats.peak:.4g}", f"at most {limits.max_peak:g}")]
    if stats.clipped > limits.clipped_share * stats.count:
        share = f"{100 * stats.clipped / stats.count:.1f} % at full scale"
        return [bad_data("FAC-A12", place, share, f"at most {100 * limits.clipped_share:g} %")]
    return []


def scan_samples(file: Any, header: AudioHeader, where: str, limits: IntakeLimits) -> tuple[SampleStats, int]:
    """Decode an open file to its end in blocks; its sums and samples of each channel.

    Args:
        file: From ``open_audio``, at its beginning.
        header: Of the file.
        where: For messages.
        limits: Decoding stops at ``max_seconds``, and at ``max_expansion`` bytes for each byte of the file.

    Raises:
        BadData: FAC-A05 to A07 where it breaks off, A15 or A17 where it goes on too long.
    """
    import soundfile

    stats, got = SampleStats(), 0
    most_bytes = max(limits.free_bytes, limits.max_expansion * header.num_bytes)
    while True:
        try:
            block = file.read(BLOCK, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise undecoded(header, where, got, error.error_string) from error
        if not len(block):
            break
        got += len(block)
        stats += measure_samples(block)
        if got * header.channels * DECODED_BYTES > most_bytes:
            value = f"{header.num_bytes} bytes that become more than {most_bytes / MEBIBYTE:.0f} MiB"
            raise bad_data("FAC-A17", where, value, f"at most {limits.max_expansion:g} bytes of sound for each")
        if got > limits.max_seconds * header.sample_rate:
            raise bad_data("FAC-A15", where, f"more than {limits.max_seconds:g} s", f"at most {limits.max_seconds:g} s")
    if got < header.frames:
        raise undecoded(header, where, got)
    return stats, got
