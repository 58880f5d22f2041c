"""Speech heads: backbone hidden states -> groups of codes."""

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.fun_audio import FunAudioHead, FunAudioState
from fac_lightning.heads.parallel import ParallelHead
from fac_lightning.heads.refined import RefinedHead, RefinedState, TextRefinedHead
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache

__all__ = [
    "CausalTransformer",
    "FunAudioHead",
    "FunAudioState",
    "KeyValueCache",
    "ParallelHead",
    "RefinedHead",
    "RefinedState",
    "SpeechHead",
    "TextRefinedHead",
]
