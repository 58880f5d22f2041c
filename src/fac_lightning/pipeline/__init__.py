"""The stage graph: a recipe of recipes, artefacts handed over, only what changed runs again."""

from fac_lightning.pipeline.graph import Stage, StageError, choose_stages, plan_stages
from fac_lightning.pipeline.inputs import mark
from fac_lightning.pipeline.memory import PeakMemory
from fac_lightning.pipeline.run import Decision, preview, run_pipeline
from fac_lightning.pipeline.state import Origin, StageState, differences

__all__ = [
    "Decision",
    "Origin",
    "PeakMemory",
    "Stage",
    "StageError",
    "StageState",
    "choose_stages",
    "differences",
    "mark",
    "plan_stages",
    "preview",
    "run_pipeline",
]
