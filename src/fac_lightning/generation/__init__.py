"""Talking: prompts, sampling, cached decoding, single turns in batches and conversations of many turns."""

from fac_lightning.generation.chunks import ReplyChunk
from fac_lightning.generation.generator import Generator
from fac_lightning.generation.prompt import UserTurn
from fac_lightning.generation.reply import Reply
from fac_lightning.generation.sampling import Decoding, Sampling
from fac_lightning.generation.session import Session

__all__ = ["Decoding", "Generator", "Reply", "ReplyChunk", "Sampling", "Session", "UserTurn"]
