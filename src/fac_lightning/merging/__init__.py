"""State-dict arithmetic: merging a tuned model with what it grew from, in memory or streamed over files."""

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.dare import DareMerge, dare
from fac_lightning.merging.ema import ema
from fac_lightning.merging.files import merge_files
from fac_lightning.merging.job import WeightMerge
from fac_lightning.merging.linear import LinearMerge, linear_merge
from fac_lightning.merging.lm_cocktail import LMCocktailMerge, lm_cocktail_weights
from fac_lightning.merging.mean import weighted_mean
from fac_lightning.merging.plan import GROWING, MergePlan, PlannedTensor, plan_merge
from fac_lightning.merging.report import MergeReport, TensorReport
from fac_lightning.merging.slerp import SlerpMerge, slerp
from fac_lightning.merging.soup import GreedySoup, greedy_soup, uniform_soup
from fac_lightning.merging.source import FileSource, StateSource, TensorSource, TensorSpec
from fac_lightning.merging.state import MergedState, merge_state_dicts
from fac_lightning.merging.sweep import MergeSweep, SweepPoint, pareto_front
from fac_lightning.merging.task_arithmetic import TaskArithmeticMerge, task_arithmetic
from fac_lightning.merging.ties import TiesMerge, ties
from fac_lightning.merging.writer import StreamedWriter

__all__ = [
    "GROWING",
    "DareMerge",
    "FileSource",
    "GreedySoup",
    "LMCocktailMerge",
    "LinearMerge",
    "MergeMethod",
    "MergePlan",
    "MergeReport",
    "MergeSweep",
    "MergedState",
    "PlannedTensor",
    "SlerpMerge",
    "StateSource",
    "StreamedWriter",
    "SweepPoint",
    "TaskArithmeticMerge",
    "TensorReport",
    "TensorSource",
    "TensorSpec",
    "TiesMerge",
    "WeightMerge",
    "dare",
    "ema",
    "greedy_soup",
    "linear_merge",
    "lm_cocktail_weights",
    "merge_files",
    "merge_state_dicts",
    "pareto_front",
    "plan_merge",
    "slerp",
    "task_arithmetic",
    "ties",
    "uniform_soup",
    "weighted_mean",
]
