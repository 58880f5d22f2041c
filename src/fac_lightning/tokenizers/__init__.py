"""Room tokenizers: waveforms to codes and back."""

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.tokenizers.dac import DACTokenizer
from fac_lightning.tokenizers.encodec import EncodecTokenizer
from fac_lightning.tokenizers.encodec_48k import Encodec48kTokenizer
from fac_lightning.tokenizers.encodec_package import EncodecPackageTokenizer
from fac_lightning.tokenizers.fsq import FSQTokenizer
from fac_lightning.tokenizers.griffin_lim import griffin_lim
from fac_lightning.tokenizers.kmeans import KMeansTokenizer
from fac_lightning.tokenizers.mel import LogMel
from fac_lightning.tokenizers.mimi import MimiTokenizer
from fac_lightning.tokenizers.neucodec import NeuCodecTokenizer
from fac_lightning.tokenizers.quantizer import FiniteScalarQuantizer
from fac_lightning.tokenizers.s3 import S3Tokenizer
from fac_lightning.tokenizers.s3_onnx import S3OnnxTokenizer
from fac_lightning.tokenizers.xcodec import XCodecTokenizer
from fac_lightning.tokenizers.xcodec2 import XCodec2Tokenizer

__all__ = [
    "DACTokenizer",
    "Encodec48kTokenizer",
    "EncodecPackageTokenizer",
    "EncodecTokenizer",
    "FSQTokenizer",
    "FiniteScalarQuantizer",
    "KMeansTokenizer",
    "LogMel",
    "MimiTokenizer",
    "NeuCodecTokenizer",
    "S3OnnxTokenizer",
    "S3Tokenizer",
    "SpeechTokenizer",
    "XCodec2Tokenizer",
    "XCodecTokenizer",
    "griffin_lim",
]
