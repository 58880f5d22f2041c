"""Recipes: compose, check, build, save. Knows OmegaConf and dotted paths, and nothing of the parts."""

from fac_lightning.config.build import accepts, instantiate
from fac_lightning.config.check import GIVEN, check, ensure, untrusted
from fac_lightning.config.compose import Recipe, find_recipe, load, loads, shipped_recipes
from fac_lightning.config.errors import Problem, RecipeError, UserError, report
from fac_lightning.config.save import header, recipe_text, save
from fac_lightning.config.source import Argument, BadPath, Definition, define, find, locate, public_names

__all__ = [
    "GIVEN",
    "Argument",
    "BadPath",
    "Definition",
    "Problem",
    "Recipe",
    "RecipeError",
    "UserError",
    "accepts",
    "check",
    "define",
    "ensure",
    "find",
    "find_recipe",
    "header",
    "instantiate",
    "load",
    "loads",
    "locate",
    "public_names",
    "recipe_text",
    "report",
    "save",
    "shipped_recipes",
    "untrusted",
]
