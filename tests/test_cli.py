"""The ``fac`` command: what it prints, leaves behind and answers to mistakes."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.utilities import rank_zero_info

import recipe_parts
from fac_lightning.cli import load_run, main
from fac_lightning.cli.fit import fit
from fac_lightning.config import RecipeError, load
from recipe_parts import Inherits

RECIPE = """
seed: 1
vars: {dim: 4, run: RUN}
model:
  _target_: recipe_parts.Model
  dim: ${vars.dim}
  adapter: {_target_: recipe_parts.Inherits, dim: "${vars.dim}"}
task:
  _target_: recipe_parts.Task
  optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}
data: {_target_: recipe_parts.Data, dim: "${vars.dim}", batch_size: 16}
trainer: {max_steps: 6, accelerator: cpu, default_root_dir: "${vars.run}", log_every_n_steps: 1}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("RUN", str(tmp_path / "run")))
    return path


@pytest.fixture(autouse=True)
def _quiet_lightning():
    """Lightning touches what newer versions of torch deprecate; the command silences it, and so does this."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*treespec.*")
        yield


def test_fit_leaves_a_run_folder(recipe, tmp_path, capsys):
    assert main(["fit", str(recipe), "trainer.max_steps=8"]) == 0
    shown = capsys.readouterr()
    assert "8 steps" in shown.out
    assert "train/loss" in shown.out
    assert "Tip" not in shown.out + shown.err
    run = tmp_path / "run"
    files = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert files == {"recipe.yaml", "model.safetensors", "checkpoints/last.ckpt", "logs/metrics.csv"}
    losses = [float(line.split(",")[-1]) for line in (run / "logs/metrics.csv").read_text().splitlines()[1:]]
    assert losses[-1] < losses[0]
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["fac_lightning_recipe"] == (run / "recipe.yaml").read_text()


def test_what_a_task_says_at_the_start_is_shown_and_advertisements_are_not(recipe, monkeypatch, caplog):
    monkeypatch.setattr(recipe_parts.Task, "setup", lambda task, stage: rank_zero_info("a table of what is trained"))
    assert main(["fit", str(recipe)]) == 0
    said = [record.getMessage() for record in caplog.records if record.name.startswith("lightning")]
    assert said == ["a table of what is trained"]


def test_saved_recipe_repeats_the_run_exactly(recipe, tmp_path):
    first = fit(load(recipe))
    again = fit(load(tmp_path / "run" / "recipe.yaml", [f"trainer.default_root_dir={tmp_path / 'again'}"]))
    assert again.metrics == first.metrics
    old, new = ((tmp_path / name / "recipe.yaml").read_text().splitlines()[1:] for name in ("run", "again"))
    assert [a for a, b in zip(old, new, strict=True) if a != b] == [f"  default_root_dir: {tmp_path / 'run'}"]


def test_another_recipe_in_the_same_folder_is_refused_before_it_is_built(recipe, capsys):
    assert main(["fit", str(recipe)]) == 0
    assert main(["fit", str(recipe), "seed=2"]) == 2
    assert "never overwritten (there 'seed: 1', now 'seed: 2')" in capsys.readouterr().err


def test_a_run_goes_on_in_its_own_folder(recipe):
    whole = fit(load(recipe))
    again = fit(load(recipe, ["ckpt_path=last"]))
    assert again.steps == whole.steps == 6


def test_init_from_takes_what_fits_and_says_so(recipe, tmp_path, caplog):
    caplog.set_level("INFO", "fac_lightning")
    fit(load(recipe))
    second = [f"init_from={tmp_path / 'run'}", f"vars.run={tmp_path / 'second'}", "trainer.max_steps=1"]
    result = fit(load(recipe, second))
    assert any("tensors loaded" in message for message in caplog.messages)
    assert (
        result.metrics["train/loss"]
        < fit(load(recipe, [f"vars.run={tmp_path / 'c'}", second[2]])).metrics["train/loss"]
    )


def test_load_run_gives_the_trained_model_and_builds_nothing_unknown(recipe, tmp_path):
    fit(load(recipe))
    with pytest.raises(RecipeError, match=r"--allow recipe_parts\."):
        load_run(tmp_path / "run")
    run = load_run(tmp_path / "run", allow=["recipe_parts."])
    assert isinstance(run.model.adapter, Inherits)
    assert not run.model.training
    assert run.data["dim"] == 4
    assert run.tokenizer is run.text_tokenizer is None


def test_a_part_is_swapped_by_its_path(recipe):
    result = fit(load(recipe, ["model.adapter=recipe_parts.Adapter", "model.adapter.group_size=3"]))
    saved = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert saved["model"]["adapter"] == {"_target_": "recipe_parts.Adapter", "dim": 4, "group_size": 3}


def test_check_lists_and_exits_2(recipe, capsys):
    assert main(["check", str(recipe)]) == 0
    assert main(["check", str(recipe), "data.dmi=3", "tasc=1"]) == 2
    shown = capsys.readouterr().out
    assert f"{recipe}: no problems" in shown
    assert f"{recipe}: 2 problems" in shown
    assert main(["check", str(recipe), "data.dim=???"]) == 2
    assert main(["check", "--allow-missing", str(recipe), "data.dim=???"]) == 0


def test_check_looks_into_the_stages_of_a_pipeline(recipe, tmp_path, capsys):
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text("stages:\n  one: {recipe: tiny.yaml, overrides: {data: {bach_size: 3}}}\n")
    assert main(["check", str(pipeline)]) == 2
    assert "tiny.yaml: data.bach_size = 3" in capsys.readouterr().out
    pipeline.write_text("stages:\n  one: {recipe: nothing.yaml}\n")
    assert main(["check", str(pipeline)]) == 2
    assert "there is no recipe 'nothing.yaml'" in capsys.readouterr().out


def test_pipeline_runs_once(recipe, tmp_path, capsys):
    (tmp_path / "job.yaml").write_text(f"job: {{_target_: recipe_parts.Job, out: {tmp_path / 'job'}}}\n")
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        f"vars: {{run: {tmp_path / 'all'}}}\nstages:\n  work: {{recipe: job.yaml}}\n  train: {{recipe: tiny.yaml}}\n"
    )
    assert main(["run", str(pipeline)]) == 0
    shown = capsys.readouterr().out
    assert "[1/2] work: starts" in shown
    assert "[2/2] train: done" in shown
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert main(["run", str(pipeline)]) == 0
    assert capsys.readouterr().out.split() == ["[1/2]", "work:", "done", "before", "[2/2]", "train:", "done", "before"]
    assert main(["run", str(pipeline), "stages.work.overrides.job.text=more"]) == 0
    assert (tmp_path / "job" / "work.txt").read_text() == "more\n"
    assert yaml.safe_load((tmp_path / "job" / "recipe.yaml").read_text())["job"]["text"] == "more"


def test_synth_runs_a_job_and_nothing_else(recipe, tmp_path, capsys):
    path = tmp_path / "job.yaml"
    path.write_text("job: {_target_: recipe_parts.Job, out: ???}\n")
    assert main(["synth", str(path)]) == 2
    assert "Inside {...} a value ??? must be in quotes: '???'." in capsys.readouterr().err
    path.write_text("job: {_target_: recipe_parts.Job, out: '???'}\n")
    assert main(["synth", str(path)]) == 2
    assert "job.out = ???" in capsys.readouterr().err
    assert main(["synth", str(path), f"job.out={tmp_path / 'made'}"]) == 0
    assert (tmp_path / "made" / "work.txt").read_text() == "done\n"
    assert main(["synth", str(recipe)]) == 2
    assert "has no 'job:'" in capsys.readouterr().err


def test_show_prints_recipe_parts_and_shapes(recipe, capsys):
    assert main(["show", str(recipe), "vars.dim=8"]) == 0
    shown = capsys.readouterr().out
    assert "_target_: recipe_parts.Model" in shown
    assert "Inherits" in shown
    assert "(16, 8)" in shown
    assert main(["show", str(recipe), "--recipe-only"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["dim"] == 4


def test_list_knows_every_slot(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert "fac_lightning.heads.RefinedHead\n" in shown
    assert "group_size: int" in shown
    assert main(["list", "head"]) == 0
    assert "HFBackbone" not in capsys.readouterr().out
    assert main(["list", "haeds"]) == 2
    assert "Did you mean 'heads'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["fti"], 2, "there is no command 'fti'. Did you mean 'fit'?"),
        (["fit", "nowhere.yaml"], 2, "there is no recipe 'nowhere.yaml'"),
        (["fit"], 2, "RECIPE"),
        (["chat", "nowhere"], 3, "nowhere is no run folder"),
        (["chat", "nowhere", "--wav", "no.wav"], 3, "there is no audio file no.wav"),
        (["chat", "nowhere", "--wav", "no.wav", "--text", "x"], 2, "give one of them"),
        (["eval", "nowhere"], 3, "nowhere is no run folder"),
    ],
)
def test_errors_are_one_line_and_a_code(words, code, told, capsys):
    assert main(words) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown


def test_sections_that_are_missing_are_told_together(tmp_path, capsys):
    path = tmp_path / "empty.yaml"
    path.write_text("seed: 1\n")
    assert main(["fit", str(path)]) == 2
    shown = capsys.readouterr().err
    assert "3 problems" in shown
    assert "task\n      is missing: what a training step is." in shown


def test_help_and_version(capsys):
    assert main([]) == main(["--help"]) == main(["--version"]) == main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "fac check    list every mistake of recipes" in shown
    assert "fac_lightning 0.1.0" in shown
