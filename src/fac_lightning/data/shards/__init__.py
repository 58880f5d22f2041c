"""Shards: dialogues packed into few large files, for training on more of them than fit in memory."""

from __future__ import annotations

from fac_lightning.data.shards.corpus import ShardCorpus
from fac_lightning.data.shards.export import read_shards
from fac_lightning.data.shards.folder import ShardFolder
from fac_lightning.data.shards.open import open_source
from fac_lightning.data.shards.sharding import DialogueSharding

__all__ = ["DialogueSharding", "ShardCorpus", "ShardFolder", "open_source", "read_shards"]
