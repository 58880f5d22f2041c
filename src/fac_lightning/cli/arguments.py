"""What several commands share: a parser for a recipe and its overrides."""

from __future__ import annotations

import argparse

__all__ = ["parser", "recipe_parser"]

_OVERRIDES = (
    "key=value sets, key=dotted.Path exchanges a part, '~key' deletes; "
    "for example trainer.max_steps=100 model.head=fac_lightning.heads.ParallelHead"
)


def parser(command: str, description: str) -> argparse.ArgumentParser:
    """Parser of one command."""
    return argparse.ArgumentParser(prog=f"fac {command}", description=description, allow_abbrev=False)


def recipe_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Parser of a command that takes a recipe and overrides; use ``parse_intermixed_args``."""
    made = parser(command, description)
    made.add_argument("recipe", metavar="RECIPE", help="file, run folder, or name of a shipped recipe")
    made.add_argument("overrides", metavar="key=value", nargs="*", help=_OVERRIDES)
    return made
