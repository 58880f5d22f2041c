"""Lightning callbacks, one a file."""

from fac_lightning.callbacks.data_counts import DataCounts
from fac_lightning.callbacks.forgetting_guard import ForgettingGuard
from fac_lightning.callbacks.module_freezing import ModuleFreezing
from fac_lightning.callbacks.random_state import RandomState
from fac_lightning.callbacks.save_recipe import SaveRecipe, refuse_other_recipe, write_recipe
from fac_lightning.callbacks.save_weights import LoadedWeights, SaveWeights, load_weights
from fac_lightning.callbacks.step_progress import StepProgress
from fac_lightning.callbacks.weight_merging import WeightMerging

__all__ = [
    "DataCounts",
    "ForgettingGuard",
    "LoadedWeights",
    "ModuleFreezing",
    "RandomState",
    "SaveRecipe",
    "SaveWeights",
    "StepProgress",
    "WeightMerging",
    "load_weights",
    "refuse_other_recipe",
    "write_recipe",
]
