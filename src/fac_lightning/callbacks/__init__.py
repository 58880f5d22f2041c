"""Lightning callbacks, one a file."""

from fac_lightning.callbacks.save_recipe import SaveRecipe, write_recipe
from fac_lightning.callbacks.save_weights import LoadedWeights, SaveWeights, load_weights

__all__ = ["LoadedWeights", "SaveRecipe", "SaveWeights", "load_weights", "write_recipe"]
