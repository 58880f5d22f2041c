"""``fac synth``: make dialogues."""

from __future__ import annotations

from collections.abc import Sequence

from fac_lightning.cli.arguments import recipe_parser
from fac_lightning.cli.run_command import run_job
from fac_lightning.config import load

__all__ = ["main"]


def main(words: Sequence[str]) -> int:
    """Run the job of a recipe."""
    made = recipe_parser("synth", "Make dialogues: run a recipe that has a 'job:'. Calling it again resumes.")
    args = made.parse_intermixed_args(words)
    run_job(load(args.recipe, args.overrides))
    return 0
