"""The shared text LLM and its tokenizer."""

from fac_lightning.backbones.base import Backbone
from fac_lightning.backbones.four_bit import FourBitBackbone
from fac_lightning.backbones.hf import HFBackbone
from fac_lightning.backbones.lora import LoRABackbone
from fac_lightning.text_tokenizer import load_text_tokenizer, train_text_tokenizer

__all__ = [
    "Backbone",
    "FourBitBackbone",
    "HFBackbone",
    "LoRABackbone",
    "load_text_tokenizer",
    "train_text_tokenizer",
]
