"""Tiny parts and contract checks, for our tests and for everyone's own parts."""

from fac_lightning.testing.adapter import check_adapter, check_fusion
from fac_lightning.testing.backbone import check_backbone
from fac_lightning.testing.detokenizer import check_detokenizer
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.testing.distortion import check_distortion
from fac_lightning.testing.encoder import check_encoder
from fac_lightning.testing.encoder_kinds import ENCODER_KINDS, tiny_encoder
from fac_lightning.testing.families import BACKBONE_FAMILIES, family_config
from fac_lightning.testing.fun_audio_chat import make_fun_audio_chat
from fac_lightning.testing.head import check_head
from fac_lightning.testing.tiny import FrameEncoder, tiny_backbone, tiny_batch, tiny_speech_lm
from fac_lightning.testing.tokenizer import check_tokenizer

__all__ = [
    "BACKBONE_FAMILIES",
    "ENCODER_KINDS",
    "FrameEncoder",
    "check_adapter",
    "check_backbone",
    "check_detokenizer",
    "check_distortion",
    "check_encoder",
    "check_fusion",
    "check_head",
    "check_tokenizer",
    "family_config",
    "make_dialogues",
    "make_fun_audio_chat",
    "tiny_backbone",
    "tiny_batch",
    "tiny_encoder",
    "tiny_speech_lm",
]
