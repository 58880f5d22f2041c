"""Room tokenizers: waveforms to codes and back."""

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.tokenizers.encodec import EncodecTokenizer
from fac_lightning.tokenizers.fsq import FSQTokenizer
from fac_lightning.tokenizers.griffin_lim import griffin_lim
from fac_lightning.tokenizers.mel import LogMel
from fac_lightning.tokenizers.quantizer import FiniteScalarQuantizer

__all__ = ["EncodecTokenizer", "FSQTokenizer", "FiniteScalarQuantizer", "LogMel", "SpeechTokenizer", "griffin_lim"]
