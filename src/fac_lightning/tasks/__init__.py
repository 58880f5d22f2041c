"""Lightning modules: what a training step is."""

from fac_lightning.tasks.base import PackedLineTask
from fac_lightning.tasks.codec_training import CodecTraining
from fac_lightning.tasks.speech_sft import SpeechSFT
from fac_lightning.tasks.text_pretraining import TextPretraining

__all__ = ["CodecTraining", "PackedLineTask", "SpeechSFT", "TextPretraining"]
