"""The stage graph: a recipe of recipes, artefacts handed over, only what changed runs again."""

from fac_lightning.pipeline.memory import PeakMemory
from fac_lightning.pipeline.stages import Stage, StageError, StageState, plan_stages, run_pipeline

__all__ = ["PeakMemory", "Stage", "StageError", "StageState", "plan_stages", "run_pipeline"]
