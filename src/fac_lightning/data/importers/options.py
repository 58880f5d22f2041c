"""What every import may be told: where files may lie, what becomes of the sound, and how much is taken."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ImportOptions"]


@dataclass(frozen=True)
class ImportOptions:
    """Settings that all importers share; nothing is resampled, mixed down or dropped unless they say so.

    Args:
        root: Folder in which relative paths start and below which all files must lie; that of the source when None.
        sample_rate: Hz of all audio in the folder; every recording keeps its own when None.
        mix_channels: Average the channels of recordings with several; else they are bad.
        trust_paths: Take files outside ``root`` too.
        trust_commands: Run the commands that a manifest has in place of files. They can do anything.
        max_seconds: Longest recording; a longer one, or one whose header claims to be, is bad.
        limit: Stop after so many dialogues; None takes all.
        skip_bad: Accept that bad items are left out; else the import ends in an error once the good ones are in.
    """

    root: str | None = None
    sample_rate: int | None = None
    mix_channels: bool = False
    trust_paths: bool = False
    trust_commands: bool = False
    max_seconds: float = 14400.0
    limit: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that let nothing through."""
        for name in ("sample_rate", "max_seconds", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
