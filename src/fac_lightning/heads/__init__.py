"""Speech heads: backbone hidden states -> groups of codes."""

from fac_lightning.heads.base import SpeechHead
from fac_lightning.heads.chain import ChainState
from fac_lightning.heads.delay import DelayHead
from fac_lightning.heads.depth import DepthHead
from fac_lightning.heads.frame_state import FrameState
from fac_lightning.heads.fun_audio import FunAudioHead, FunAudioSlots, FunAudioState
from fac_lightning.heads.multi_token import MultiTokenHead
from fac_lightning.heads.nested import NestedRefinedHead
from fac_lightning.heads.parallel import ParallelHead
from fac_lightning.heads.refined import RefinedHead, TextRefinedHead
from fac_lightning.heads.row_state import NoRowState, RowState, SeenRow
from fac_lightning.heads.transformer import CausalTransformer, KeyValueCache

__all__ = [
    "CausalTransformer",
    "ChainState",
    "DelayHead",
    "DepthHead",
    "FrameState",
    "FunAudioHead",
    "FunAudioSlots",
    "FunAudioState",
    "KeyValueCache",
    "MultiTokenHead",
    "NestedRefinedHead",
    "NoRowState",
    "ParallelHead",
    "RefinedHead",
    "RowState",
    "SeenRow",
    "SpeechHead",
    "TextRefinedHead",
]
