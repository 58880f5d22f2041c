"""Every recipe that ships is checked: a recipe that nobody checks is a broken one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fac_lightning.cli.check_command import check_all
from fac_lightning.config import load, report, shipped_recipes

RECIPES = Path(__file__).parents[1] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
WHOLE = [file for file in FILES if file.parent.name != "_base"]  # those below _base are checked where they are used


def test_there_are_recipes():
    assert WHOLE


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.relative_to(RECIPES).as_posix())
def test_recipe_passes_the_check(file):
    recipe = load(file)
    problems = check_all(recipe, allow_missing=True)
    assert not problems, report(recipe.name, problems)


@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.relative_to(RECIPES).as_posix())
def test_recipe_opens_with_what_it_is_and_how_to_run_it(file):
    head = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("fac " in line for line in head), "the header comment shows no command"
    name = file.relative_to(RECIPES).as_posix()
    assert any(name.removesuffix(".yaml") in line for line in head), f"the command in the header does not name {name}"


def test_every_base_is_used():
    used = set()
    for file in FILES:
        bases = yaml.safe_load(file.read_text(encoding="utf-8")).get("base", [])
        used |= {(file.parent / base).resolve() for base in ([bases] if isinstance(bases, str) else bases)}
    unused = [file.name for file in FILES if file.parent.name == "_base" and file.resolve() not in used]
    assert not unused, f"no recipe is based on {unused}"


def test_recipes_are_found_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = shipped_recipes()
    assert {file.resolve() for file in shipped.values()} >= {file.resolve() for file in WHOLE}
    name = next(name for name in shipped if not name.startswith("_"))
    assert load(name).tree == load(f"recipes/{name}.yaml").tree
