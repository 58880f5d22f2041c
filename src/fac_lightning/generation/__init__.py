"""Talking: prompts, sampling, cached decoding, single turns in batches, conversations, and many of both at once."""

from fac_lightning.generation.chunks import ReplyChunk
from fac_lightning.generation.engine import SpeechEngine
from fac_lightning.generation.engine_session import EngineSession
from fac_lightning.generation.generator import Generator
from fac_lightning.generation.prompt import UserTurn
from fac_lightning.generation.reply import Reply
from fac_lightning.generation.requests import EngineChunk, SpeechRequest
from fac_lightning.generation.sampling import Decoding, Sampling
from fac_lightning.generation.session import Session

__all__ = [
    "Decoding",
    "EngineChunk",
    "EngineSession",
    "Generator",
    "Reply",
    "ReplyChunk",
    "Sampling",
    "Session",
    "SpeechEngine",
    "SpeechRequest",
    "UserTurn",
]
