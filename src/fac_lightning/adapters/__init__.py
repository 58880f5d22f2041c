"""Grouping and fusion: what fills one backbone position."""

from fac_lightning.adapters.attention import AttentionCodeGrouping, AttentionGrouping
from fac_lightning.adapters.base import CodeAdapter, FeatureAdapter, FrameStream, Fusion
from fac_lightning.adapters.cif import CIFGrouping
from fac_lightning.adapters.code_features import CodeFeatureGrouping, DigitFeatureGrouping
from fac_lightning.adapters.codes import CodeEmbedding, ConcatCodeGrouping, MeanCodeGrouping
from fac_lightning.adapters.composed import ComposedCodes
from fac_lightning.adapters.conv import ConvGrouping
from fac_lightning.adapters.features import ConcatGrouping, MeanGrouping
from fac_lightning.adapters.fun_audio import FunAudioCodeGrouping
from fac_lightning.adapters.fusion import AddFusion, MeanFusion, SumFusion
from fac_lightning.adapters.patch_transformer import TransformerCodeGrouping, TransformerGrouping
from fac_lightning.adapters.standardized import StandardizedGrouping

__all__ = [
    "AddFusion",
    "AttentionCodeGrouping",
    "AttentionGrouping",
    "CIFGrouping",
    "CodeAdapter",
    "CodeEmbedding",
    "CodeFeatureGrouping",
    "ComposedCodes",
    "ConcatCodeGrouping",
    "ConcatGrouping",
    "ConvGrouping",
    "DigitFeatureGrouping",
    "FeatureAdapter",
    "FrameStream",
    "FunAudioCodeGrouping",
    "Fusion",
    "MeanCodeGrouping",
    "MeanFusion",
    "MeanGrouping",
    "StandardizedGrouping",
    "SumFusion",
    "TransformerCodeGrouping",
    "TransformerGrouping",
]
