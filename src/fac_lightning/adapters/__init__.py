"""Grouping and fusion: what fills one backbone position."""

from fac_lightning.adapters.base import CodeAdapter, FeatureAdapter, Fusion
from fac_lightning.adapters.code_features import CodeFeatureGrouping
from fac_lightning.adapters.codes import CodeEmbedding, ConcatCodeGrouping, MeanCodeGrouping
from fac_lightning.adapters.features import ConcatGrouping, MeanGrouping
from fac_lightning.adapters.fun_audio import FunAudioCodeGrouping
from fac_lightning.adapters.fusion import AddFusion, MeanFusion, SumFusion
from fac_lightning.adapters.standardized import StandardizedGrouping

__all__ = [
    "AddFusion",
    "CodeAdapter",
    "CodeEmbedding",
    "CodeFeatureGrouping",
    "ConcatCodeGrouping",
    "ConcatGrouping",
    "FeatureAdapter",
    "FunAudioCodeGrouping",
    "Fusion",
    "MeanCodeGrouping",
    "MeanFusion",
    "MeanGrouping",
    "StandardizedGrouping",
    "SumFusion",
]
