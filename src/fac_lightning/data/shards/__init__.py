"""Shards: dialogues packed into few large files, for training on more of them than fit in memory."""

from __future__ import annotations

from fac_lightning.data.shards.sharding import DialogueSharding

__all__ = ["DialogueSharding"]
