"""Pipelines of recipes from the command line: trainings that start from each other, stop, and go on."""

import csv
import json
import subprocess

import pytest

import recipe_parts
from fac_lightning.cli import main, run_command

TRAIN = """
seed: 1
init_from: null
model: {_target_: recipe_parts.Model, dim: 4, adapter: {_target_: recipe_parts.Adapter, dim: 4}}
task: {_target_: recipe_parts.Task, scale: 1.0, optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.1}}
data: {_target_: recipe_parts.Data, dim: 4}
trainer: {accelerator: cpu, max_steps: 5, log_every_n_steps: 1, enable_progress_bar: false, default_root_dir: RUN/llm}
"""
PIPELINE = """
vars: {run: RUN}
stages:
  evaluate: {recipe: job.yaml, overrides: {job: {text: RUN/dpo, out: RUN/evaluation}}}
  llm: {recipe: train.yaml}
  sft: {recipe: train.yaml, init_from: llm, overrides: {trainer.default_root_dir: RUN/sft}}
  dpo: {recipe: train.yaml, init_from: sft, overrides: {trainer.default_root_dir: RUN/dpo}}
"""
DONE = [f"[{n}/4] {name}: done before" for n, name in enumerate(["llm", "sft", "dpo", "evaluate"], 1)]
MORE_DPO = "stages.dpo.overrides.task.scale=0.5"


@pytest.fixture
def pipeline(tmp_path):
    run = str(tmp_path / "run")
    (tmp_path / "train.yaml").write_text(TRAIN.replace("RUN", run))
    (tmp_path / "job.yaml").write_text("job: {_target_: recipe_parts.Job, out: '???'}\n")
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE.replace("RUN", run))
    return path


def lines(shown):
    return [line for line in shown.splitlines() if line.startswith("[")]


def test_a_changed_setting_runs_its_stage_and_what_depends_on_it(pipeline, tmp_path, capsys):
    assert main(["run", str(pipeline)]) == 0
    provenance = json.loads((tmp_path / "run" / "dpo" / "provenance.json").read_text())
    assert provenance["recipe"]["init_from"] == str(tmp_path / "run" / "sft")
    assert list(provenance["needs"]) == ["sft"]
    assert provenance["result"]["steps"] == 5
    assert 0 < provenance["result"]["cpu_seconds"] < 600
    capsys.readouterr()
    assert main(["run", str(pipeline)]) == 0
    assert lines(capsys.readouterr().out) == DONE

    assert main(["run", str(pipeline), MORE_DPO, "--dry-run"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{pipeline} in {tmp_path / 'run'}: 2 of 4 stages would run"
    assert [row.split()[1:3] for row in rows] == [
        ["llm", "done"],
        ["sft", "done"],
        ["dpo", "runs"],
        ["evaluate", "runs"],
    ]
    assert rows[2].endswith("task.scale: 1.0 -> 0.5  [needs sft]")

    assert main(["run", str(pipeline), MORE_DPO]) == 0
    assert [line.split(" (")[0] for line in lines(capsys.readouterr().out)] == [
        *DONE[:2], "[3/4] dpo: starts", "[3/4] dpo: done", "[4/4] evaluate: starts", "[4/4] evaluate: done"
    ]  # fmt: skip
    assert main(["run", str(pipeline)]) == 0
    assert "dpo: taken back (task.scale: 0.5 -> 1.0; made before and kept as" in capsys.readouterr().out
    assert (tmp_path / "run" / "dpo.old-2").is_dir()


@pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")  # it begins its epoch anew; ours do go on
def test_a_training_that_stopped_goes_on_from_its_last_checkpoint(pipeline, tmp_path, capsys, monkeypatch):
    steps, step = [], recipe_parts.Task.training_step

    def fragile(task, batch, index):
        steps.append((task.trainer.default_root_dir.rsplit("/", 1)[-1], task.trainer.global_step))
        if steps.count(("sft", 3)) == 1 and steps[-1] == ("sft", 3):
            raise RuntimeError("power cut")
        return step(task, batch, index)

    monkeypatch.setattr(recipe_parts.Task, "training_step", fragile)
    assert main(["run", str(pipeline)]) == 1
    shown = capsys.readouterr()
    assert "[2/4] sft: stopped (RuntimeError: power cut)" in shown.out
    assert "stage 'sft' stopped after" in shown.err
    assert "done and kept: llm. The same command goes on from here" in shown.err
    assert main(["run", str(pipeline), "--dry-run"]) == 0
    assert "sft       goes on  stopped after 0 s: RuntimeError: power cut" in capsys.readouterr().out
    assert main(["run", str(pipeline)]) == 0
    shown = lines(capsys.readouterr().out)
    assert shown[0] == DONE[0]
    assert shown[1].startswith("[2/4] sft: goes on (stopped after")
    assert [number for name, number in steps if name == "sft"] == [0, 1, 2, 3, 3, 4]
    with (tmp_path / "run" / "sft" / "logs" / "metrics.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 1, 2, 3, 4]


def test_a_failure_is_told_with_its_stage_and_leaves_what_is_done(pipeline, tmp_path, capsys):
    words = ["run", str(pipeline), "stages.llm.overrides.init_from=nowhere"]
    assert main(words) == 3
    error = capsys.readouterr().err.splitlines()
    assert error[0].startswith("fac: error: there are no weights at nowhere")
    assert error[1].startswith("stage 'llm' stopped after 0 s; done and kept: none.")


@pytest.mark.parametrize("code", [0, 1])
def test_a_training_on_several_devices_has_a_process_of_its_own(pipeline, tmp_path, capsys, monkeypatch, code):
    called, real = [], subprocess.run

    def start(words, **options):
        if words[0] == "git":
            return real(words, **options)
        called.append(words[1:])
        assert main([*words[3:], "trainer.devices=1"]) == 0
        return subprocess.CompletedProcess(words, code)

    monkeypatch.setattr(run_command.subprocess, "run", start)
    words = ["stages.llm.overrides.trainer.devices=2", "--until", "llm"]
    assert main(["run", str(pipeline), *words]) == (2 if code else 0)
    file = tmp_path / "run" / "stages" / "llm.yaml"
    assert called == [["-m", "fac_lightning", "fit", str(file), "--resume"]]
    if code:
        assert f"the training of {file} ended with exit code 1; what it said stands" in capsys.readouterr().err
    else:
        provenance = json.loads((tmp_path / "run" / "llm" / "provenance.json").read_text())
        assert provenance["recipe"]["trainer"]["devices"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "dop"], "there is no stage 'dop'. Did you mean 'dpo'? Stages: llm, sft, dpo, evaluate"),
        (["--only", "sft"], "stage 'sft' needs 'llm' (init_from), which is not done and not among the stages to run"),
        (["--dry-run", "--from", "dpo"], "stage 'dpo' needs 'sft' (init_from), which is not done"),
        (["stages.llm.init_from=dpo"], "stages go round in a circle: llm needs dpo (init_from), dpo needs sft"),
    ],
)
def test_mistakes_are_one_line_and_nothing_runs(pipeline, tmp_path, capsys, words, message):
    assert main(["run", str(pipeline), *words]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert not (tmp_path / "run").exists()


def test_stages_are_chosen_on_the_command_line(pipeline, tmp_path, capsys):
    assert main(["run", str(pipeline), "--until", "sft"]) == 0
    assert not (tmp_path / "run" / "dpo").exists()
    assert main(["run", str(pipeline), "--only", "dpo"]) == 0
    assert not (tmp_path / "run" / "evaluation").exists()
    assert "[1/4] llm: left as it is" in capsys.readouterr().out
    assert main(["run", str(pipeline), "--from", "dpo"]) == 0
    assert (tmp_path / "run" / "evaluation" / "provenance.json").exists()


def test_what_is_for_pipelines_is_refused_elsewhere(pipeline, tmp_path, capsys):
    assert main(["run", str(tmp_path / "train.yaml"), "--dry-run"]) == 2
    assert "--dry-run is for pipelines, and" in capsys.readouterr().err
    assert main(["run", str(tmp_path / "train.yaml"), "--from", "llm"]) == 2
    assert "--from is for pipelines, and" in capsys.readouterr().err
