"""Lightning modules: what a training step is."""

from fac_lightning.tasks.base import PackedLineTask
from fac_lightning.tasks.codec_training import CodecTraining
from fac_lightning.tasks.preference_metrics import PreferenceMetrics
from fac_lightning.tasks.reference import FrozenReference, LoRAOffReference, Reference, StoredReference
from fac_lightning.tasks.reference_logprobs import ReferenceLogprobs
from fac_lightning.tasks.speech_dpo import PreferenceSettings, SpeechDPO
from fac_lightning.tasks.speech_sft import SpeechSFT
from fac_lightning.tasks.text_pretraining import TextPretraining

__all__ = [
    "CodecTraining",
    "FrozenReference",
    "LoRAOffReference",
    "PackedLineTask",
    "PreferenceMetrics",
    "PreferenceSettings",
    "Reference",
    "ReferenceLogprobs",
    "SpeechDPO",
    "SpeechSFT",
    "StoredReference",
    "TextPretraining",
]
