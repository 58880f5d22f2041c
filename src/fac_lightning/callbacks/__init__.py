"""Lightning callbacks, one a file."""

from fac_lightning.callbacks.activation_checkpointing import ActivationCheckpointing
from fac_lightning.callbacks.blocks import Recomputed, chosen_blocks, compile_block, find_blocks, release_block
from fac_lightning.callbacks.data_counts import DataCounts
from fac_lightning.callbacks.forgetting_guard import ForgettingGuard
from fac_lightning.callbacks.module_freezing import ModuleFreezing
from fac_lightning.callbacks.random_state import RandomState
from fac_lightning.callbacks.regional_compilation import RegionalCompilation
from fac_lightning.callbacks.save_recipe import SaveRecipe, refuse_other_recipe, write_recipe
from fac_lightning.callbacks.save_weights import LoadedWeights, SaveWeights, load_weights
from fac_lightning.callbacks.step_progress import StepProgress
from fac_lightning.callbacks.weight_merging import WeightMerging

__all__ = [
    "ActivationCheckpointing",
    "DataCounts",
    "ForgettingGuard",
    "LoadedWeights",
    "ModuleFreezing",
    "RandomState",
    "Recomputed",
    "RegionalCompilation",
    "SaveRecipe",
    "SaveWeights",
    "StepProgress",
    "WeightMerging",
    "chosen_blocks",
    "compile_block",
    "find_blocks",
    "load_weights",
    "refuse_other_recipe",
    "release_block",
    "write_recipe",
]
