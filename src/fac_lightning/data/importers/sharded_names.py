"""File names that stand for many: NeMo's ``_OP_0..7_CL_`` and the shell's ``{0..7}``."""

from __future__ import annotations

import re

__all__ = ["expand_shards"]

RANGE = re.compile(r"(?:_OP_|\{|\(|\[|<)(\d+)\.\.(\d+)(?:_CL_|\}|\)|\]|>)")


def expand_shards(name: str) -> list[str]:
    """The names that one stands for, in order; itself where it has no range.

    Raises:
        ValueError: A range goes backwards.

    Example:
        >>> expand_shards("audio__OP_8..10_CL_.tar")
        ['audio_8.tar', 'audio_9.tar', 'audio_10.tar']
        >>> expand_shards("shard-{000..002}.tar")
        ['shard-000.tar', 'shard-001.tar', 'shard-002.tar']
    """
    match = RANGE.search(name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ValueError(f"{name!r} counts from {first} to {last}; write the smaller number first")
    width = len(match[1]) if match[1].startswith("0") and len(match[1]) > 1 else 0
    ends = expand_shards(name[match.end() :])
    return [f"{name[: match.start()]}{i:0{width}d}{end}" for i in range(first, last + 1) for end in ends]
