"""Every lesson under ``examples/`` runs as it stands, in an empty folder; the package there is used as a user would."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fac_lightning.cli import main
from fac_lightning.cli.matrix_trial import MatrixTrials
from fac_lightning.data import TextTokenizerTraining
from fac_lightning.testing import make_dialogues
from fac_lightning.testing.matrix import PartCatalogue, TrialResult
from test_cli_talk import RECIPE

REPO = Path(__file__).parents[1]
EXAMPLES = sorted((REPO / "examples").glob("*.py"))
PACKAGE = REPO / "examples" / "my_speech_part"
# What a reader types behind the file name.
ARGUMENTS: dict[str, list[str]] = {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example), *ARGUMENTS.get(example.name, [])])
    runpy.run_path(str(example), run_name="__main__")


def test_there_are_lessons():
    assert len(EXAMPLES) >= 3


@pytest.mark.parametrize(
    "name", ["src/my_speech_part/__init__.py", "tests/test_part.py", "parts.yaml", "pyproject.toml"]
)
def test_the_page_on_extending_shows_the_package(name):
    page = (REPO / "docs" / "extending.md").read_text(encoding="utf-8")
    assert f"\n{(PACKAGE / name).read_text(encoding='utf-8')}```\n" in page


def test_the_package_passes_its_own_tests(tmp_path):
    copy = shutil.copytree(PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    installed = {**os.environ, "PYTHONPATH": str(copy / "src")}
    done = subprocess.run(command, cwd=copy, env=installed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_part_of_the_package_trains_and_talks_by_its_path(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(PACKAGE / "src")
    make_dialogues(tmp_path / "train", 8)
    TextTokenizerTraining([str(tmp_path / "train")], 360, str(tmp_path / "tokenizer")).run()
    run = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("WORLD", str(tmp_path)).replace("RUN", str(run)))
    words = ["model.feature_adapter=my_speech_part.MaxGrouping", "trainer.max_steps=3", "~data.val"]
    assert main(["fit", str(tmp_path / "recipe.yaml"), *words]) == 0
    capsys.readouterr()
    talk = ["chat", str(run), "--text", "What follows red?", "--max-positions", "4"]
    assert main(talk) == 2
    assert "If you trust its author: --allow my_speech_part." in capsys.readouterr().err
    assert main([*talk, "--allow", "my_speech_part."]) == 0
    assert capsys.readouterr().out.strip()


def test_the_part_of_the_package_goes_with_ours(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PACKAGE / "src")
    trials = MatrixTrials(PartCatalogue.load(PACKAGE / "parts.yaml"), tmp_path)
    trials.prepare()
    first = {slot: names[0] for slot, names in trials.catalogue.choices().items()}
    result = trials.run({**first, "feature_adapter": "MaxGrouping"}, 0)
    assert result.outcome == "green", result.reason


def test_fac_matrix_tries_it_beside_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(PACKAGE / "src")
    monkeypatch.setattr(MatrixTrials, "run", lambda self, chosen, number: TrialResult(chosen, "green"))
    monkeypatch.setattr(MatrixTrials, "refusal", lambda self, chosen: None)
    page = tmp_path / "page.md"
    words = ["--parts", str(PACKAGE / "parts.yaml"), "--with", "MaxGrouping", "--page", str(page)]
    assert main(["matrix", *words]) == 0
    assert " 0 red" in capsys.readouterr().out
    assert "| MaxGrouping |" in page.read_text()
    assert "| ConcatGrouping |" not in page.read_text()
    assert f"`fac matrix --parts {PACKAGE / 'parts.yaml'} --with MaxGrouping`" in page.read_text()
