"""Recipes: compose, check, build, save. Knows OmegaConf and dotted paths, and nothing of the parts."""

from fac_lightning.config.build import accepts, instantiate
from fac_lightning.config.check import GIVEN, check, ensure, untrusted
from fac_lightning.config.compose import Recipe, amend, find_recipe, load, loads, shipped_recipes
from fac_lightning.config.errors import Problem, RecipeError, UserError, report
from fac_lightning.config.save import header, recipe_text, surroundings
from fac_lightning.config.signatures import Argument, Definition, define, find, lineage, locate
from fac_lightning.config.source import BadPath, Unreadable, public_names

__all__ = [
    "GIVEN",
    "Argument",
    "BadPath",
    "Definition",
    "Problem",
    "Recipe",
    "RecipeError",
    "Unreadable",
    "UserError",
    "accepts",
    "amend",
    "check",
    "define",
    "ensure",
    "find",
    "find_recipe",
    "header",
    "instantiate",
    "lineage",
    "load",
    "loads",
    "locate",
    "public_names",
    "recipe_text",
    "report",
    "shipped_recipes",
    "surroundings",
    "untrusted",
]
