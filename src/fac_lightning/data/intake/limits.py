"""How far data may differ from what is told of them, and what they may reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MEBIBYTE", "IntakeLimits"]

MEBIBYTE = 2**20


@dataclass(frozen=True)
class IntakeLimits:
    """What ``fac data check`` and training accept.

    Args:
        frame_tolerance: Seconds by which audio and its manifest may differ: one frame of speech codes at 25 Hz.
        min_seconds: Shortest turn: one group of a backbone at 5 Hz.
        max_seconds: Longest recording.
        max_frames: Most samples of a channel that a file's header may claim.
        min_sample_rate: Hz.
        max_sample_rate: Hz.
        max_channels: Of a file.
        channels: That a turn is heard on: 1, or 2 where the two sides of a dialogue are the channels of one recording.
        max_expansion: Decoded bytes for each byte of a file, of files that decode to more than ``free_bytes``.
        free_bytes: Decoded bytes below which a file may be as compressed as it likes.
        max_member_bytes: Of one member of a Shar's tar file.
        silence: Root mean square below which audio counts as silent, dBFS.
        clipped_share: Share of samples at full scale above which audio counts as clipped.
        max_peak: Highest sample; 1 is full scale.
        roots: Folders that local audio must lie in, besides the manifest's own. Where none is named, absolute paths may
            lead anywhere on this machine.
        trust_commands: Let sources of the type ``command`` run; a manifest from elsewhere can then do anything.
        resample: Take a file at a sample rate other than its manifest says at the file's own rate.
    """

    frame_tolerance: float = 0.04
    min_seconds: float = 0.2
    max_seconds: float = 14400.0
    max_frames: int = 2**31 - 1
    min_sample_rate: int = 1000
    max_sample_rate: int = 192000
    max_channels: int = 8
    channels: int = 1
    max_expansion: float = 500.0
    free_bytes: int = 64 * MEBIBYTE
    max_member_bytes: int = 256 * MEBIBYTE
    silence: float = -80.0
    clipped_share: float = 0.01
    max_peak: float = 4.0
    roots: Sequence[str] = ()
    trust_commands: bool = False
    resample: bool = False

    def __post_init__(self) -> None:
        """Refuse what would let nothing through, or everything."""
        positive = ("max_seconds", "max_frames", "min_sample_rate", "max_channels", "channels", "max_expansion")
        for name in (*positive, "max_member_bytes", "max_peak"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("frame_tolerance", "min_seconds", "free_bytes", "clipped_share"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if isinstance(self.roots, str):
            raise ValueError(f"roots is a list of folders, got the word {self.roots!r}")
