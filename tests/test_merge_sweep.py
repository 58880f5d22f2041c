"""A sweep over alpha: every merge is evaluated once, the front is the front, and what is kept can be talked to."""

from __future__ import annotations

import json
import shutil
from functools import partial

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_model

import test_cli_talk
from fac_lightning.cli import load_run, main
from fac_lightning.cli.build import build_model
from fac_lightning.config import load
from fac_lightning.data import TextTokenizerTraining
from fac_lightning.merging import MergeSweep, SlerpMerge, pareto_front
from fac_lightning.testing import make_dialogues
from recipe_parts import Adapter, Model

RECIPE = """model: {_target_: recipe_parts.Model, dim: 4, adapter: {_target_: recipe_parts.Adapter, dim: 4}}
data: {_target_: recipe_parts.Data, dim: 4}
"""
CALLS: list[tuple[str, str]] = []  # (evaluation, run) in order


class Judge:
    """An evaluation job: how much of the tuned model is in a run, as a score of two sets."""

    def __init__(self, run, out, load_run, kind="speech", fail_at=None, other=0.0):
        self.run_folder, self.load_run, self.kind, self.fail_at, self.other = run, load_run, kind, fail_at, other

    def run(self):
        CALLS.append((self.kind, self.run_folder))
        if self.fail_at is not None and self.run_folder.endswith(f"_{self.fail_at:g}"):
            raise RuntimeError("the power failed")
        alpha = self.load_run(self.run_folder).model.embed.weight.mean().item()  # base all 0, tuned all 1
        score = 1 - (alpha - 0.7) ** 2 if self.kind == "speech" else 1 - alpha**2
        sets = {"one": {"score": score, "wer": 1 - score}, "two": {"score": score + 0.2, "wer": 0.8 - score}}
        return {"sets": sets, "name": "judge", "count": 3}


class Quiz:
    """Another evaluation job, without sets."""

    def __init__(self, run, out, load_run, points=0):
        self.points = points

    def run(self):
        return {"points": self.points}


@pytest.fixture
def runs(tmp_path):
    CALLS.clear()
    for name, value in (("base", 0.0), ("tuned", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(RECIPE)
        model = Model(Adapter(4))
        torch.nn.init.constant_(model.embed.weight, value)
        save_model(model, str(tmp_path / name / "model.safetensors"), {"format": "pt"})
    return tmp_path


def sweep(runs, judge=None, **options):
    judge = judge or {}
    settings = {
        "speech": partial(Judge, kind="speech", **judge),
        "text": partial(Judge, kind="text", **judge),
        "speech_score": "sets/*/score",
        "text_score": "sets/*/score",
        "load_run": partial(load_run, allow=["recipe_parts."]),
        **options,
    }
    names = [str(runs / name) for name in ("base", "tuned", "sweep")]
    return MergeSweep(*names, **settings)


def folders(runs):
    return sorted(path.name for path in (runs / "sweep").glob("alpha_*"))


def test_front_is_what_no_other_point_beats():
    points = [(0.0, 1.0), (0.5, 0.9), (0.5, 0.8), (0.4, 0.85), (1.0, 0.0), (1.0, 0.0), (0.2, 1.0)]
    assert pareto_front(points) == [False, True, False, False, True, True, True]
    assert pareto_front([]) == []


def test_every_alpha_is_merged_and_judged(runs):
    given = sweep(runs).run()
    assert [point["alpha"] for point in given["points"]] == [0, 0.25, 0.5, 0.75, 1]
    for point in given["points"]:
        alpha = point["alpha"]
        expected = (1 - alpha**2 + 0.1, 1 - (alpha - 0.7) ** 2 + 0.1)  # the mean of the two sets
        assert (point["text"], point["speech"]) == pytest.approx(expected, abs=1e-6)
        assert point["value"] == pytest.approx(sum(expected) / 2, abs=1e-6)
        merged = load_file(runs / "sweep" / f"alpha_{alpha:g}" / "model.safetensors")
        assert merged["out.weight" if "out.weight" in merged else "embed.weight"].mean() == pytest.approx(alpha)
    assert [point["front"] for point in given["points"]] == [True, True, True, True, False]
    assert given["best"] == 0.25  # the optimum of the mean is at 0.35
    assert len(CALLS) == 10
    stored = json.loads((runs / "sweep" / "sweep.json").read_text())
    assert stored["points"] == given["points"]
    assert stored["best"] == 0.25
    assert (runs / "sweep" / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_names_best_and_front(runs, capsys):
    sweep(runs).run()
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert [row[-2] for row in rows if "0.25" in row] == ["best"]
    assert [row[-2] for row in rows if "0.75" in row] == ["front"]


def test_the_best_is_a_run_to_go_on_from(runs):
    sweep(runs).run()
    best = load_run(runs / "sweep" / "best", allow=["recipe_parts."])
    assert best.model.embed.weight.mean() == 0.25


def test_weights_choose_the_best(runs):
    assert sweep(runs, text_weight=1.0).run()["best"] == 0
    assert sweep(runs, text_weight=0.0).run()["best"] == 0.75
    assert (runs / "sweep" / "best").resolve().name == "alpha_0.75"
    assert len(CALLS) == 10  # the choice is made anew, the results are there


def test_lower_may_be_better(runs):
    given = sweep(runs, speech_score="-sets/one/wer").run()
    assert given["points"][0]["speech"] == pytest.approx(-0.49, abs=1e-6)
    assert sweep(runs).run()["points"][0]["speech"] == pytest.approx(0.61, abs=1e-6)
    assert len(CALLS) == 10


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("sets/three/score", "the text evaluation gave no 'sets/three/score': at sets there is one, two"),
        ("sets/*/acc", r"gave no 'sets/\*/acc': at sets/\* there is score, wer"),
        ("total", "gave no 'total': at the top there is sets, name, count"),
        ("name", r"gave no number at 'name' but \['judge'\]"),
        ("count/x", "gave no 'count/x': at count there is nothing"),
    ],
)
def test_a_score_that_is_not_there_is_told(runs, path, told):
    with pytest.raises(ValueError, match=told):
        sweep(runs, text_score=path, alphas=[0.5]).run()


def test_an_interrupted_sweep_goes_on(runs):
    with pytest.raises(RuntimeError, match="the power failed"):
        sweep(runs, {"fail_at": 0.5}).run()
    assert [run[-4:] for _, run in CALLS] == ["ha_0", "ha_0", "0.25", "0.25", "_0.5"]
    CALLS.clear()
    changed = json.loads((runs / "sweep" / "sweep.json").read_text())
    for side in ("speech", "text"):
        changed["settings"][side].pop("fail_at")
    (runs / "sweep" / "sweep.json").write_text(json.dumps(changed))
    sweep(runs).run()
    assert [run[-4:] for _, run in CALLS] == ["_0.5", "_0.5", "0.75", "0.75", "ha_1", "ha_1"]
    CALLS.clear()
    again = sweep(runs, alphas=[0.4, 0.5]).run()  # more alphas
    assert [run[-4:] for _, run in CALLS] == ["_0.4", "_0.4"]
    assert [point["alpha"] for point in again["points"]] == [0.4, 0.5]
    assert (runs / "sweep" / "best").resolve().name == "alpha_0.4"


@pytest.mark.parametrize("keep", ["all", "best", "none"])
def test_merges_stay_as_asked(runs, keep):
    given = sweep(runs, keep=keep).run()
    assert given["best"] == 0.25
    kept = {"all": [f"alpha_{a:g}" for a in (0, 0.25, 0.5, 0.75, 1)], "best": ["alpha_0.25"], "none": []}
    assert folders(runs) == kept[keep]
    assert (runs / "sweep" / "best").exists() == (keep != "none")
    assert len(list((runs / "sweep" / "evaluation").glob("alpha_*/*.json"))) == 10
    CALLS.clear()
    assert sweep(runs, keep=keep).run() == given
    assert sweep(runs, keep="all").run() == given  # what is missing is merged again, not judged again
    assert folders(runs) == kept["all"]
    assert CALLS == []


def test_both_sides_are_judged_from_one_model_in_memory(runs):
    loaded = []
    sweep(runs, load_run=lambda run: loaded.append(run) or load_run(run, ["recipe_parts."]), alphas=[0, 1]).run()
    assert [run[-8:] for run in loaded] == [f"/alpha_{alpha}"[-8:] for alpha in (0, 1)]


def test_other_methods_are_swept(runs):
    for name in ("base", "tuned"):
        save_model(Model(Adapter(4)), str(runs / name / "model.safetensors"), {"format": "pt"})
    sweep(runs, method=partial(SlerpMerge, alphas={"adapter": 1.0}), alphas=[0.5], exclude=["embed.weight"]).run()
    report = json.loads((runs / "sweep" / "alpha_0.5" / "merge.json").read_text())["settings"]
    assert report["method"]["class"].endswith("SlerpMerge")
    assert report["method"]["alphas"] == {"adapter": 1.0}
    assert report["exclude"] == ["embed.weight"]


def test_another_sweep_is_not_overwritten(runs):
    sweep(runs, alphas=[1]).run()
    with pytest.raises(ValueError, match="holds a sweep with other text, speech, which is not overwritten"):
        sweep(runs, {"other": 1.0}, alphas=[1]).run()
    with pytest.raises(ValueError, match="other method"):
        sweep(runs, method=SlerpMerge, alphas=[1]).run()
    shutil.copy(runs / "base" / "model.safetensors", runs / "tuned" / "model.safetensors")  # trained again
    with pytest.raises(ValueError, match="other weights"):
        sweep(runs, alphas=[1]).run()
    shutil.rmtree(runs / "sweep")
    (runs / "sweep").mkdir()
    (runs / "sweep" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists and holds no sweep"):
        sweep(runs, alphas=[1]).run()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alphas": []}, r"alphas must be one number or more, got \[\]"),
        ({"alphas": [0.5, float("nan")]}, "alphas must be one number or more"),
        ({"text_weight": 1.5}, "text_weight must be between 0 .* got 1.5"),
        ({"keep": "some"}, "keep must be 'all', 'best' or 'none', got 'some'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(runs, options, told):
    with pytest.raises(ValueError, match=told):
        sweep(runs, **options)


# the command, and a stage of a pipeline


@pytest.fixture(scope="module")
def speech_runs(tmp_path_factory):
    """Two run folders of a whole speech model, as if ``tuned`` had been trained from ``base``."""
    pytest.importorskip("jiwer", reason="the extra eval is not installed")
    folder = tmp_path_factory.mktemp("sweep")
    make_dialogues(folder / "val", 3, seed=1)
    TextTokenizerTraining([str(folder / "val")], 320, str(folder / "tokenizer")).run()
    text = test_cli_talk.RECIPE.replace("WORLD", str(folder)).replace("RUN", str(folder / "tuned"))
    (folder / "recipe.yaml").write_text(text)
    tree = load(folder / "recipe.yaml").tree
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        shutil.copytree(folder / "tokenizer", folder / name / "text_tokenizer")
        (folder / name / "recipe.yaml").write_text(yaml.safe_dump(tree))
        save_model(build_model(tree["model"]), str(folder / name / "model.safetensors"), {"format": "pt"})
    return folder


SHORT = ["speech.max_positions=3", "speech.num_examples=0"]


def test_command_sweeps(speech_runs, tmp_path, capsys):
    words = ["merge", str(speech_runs / "base"), str(speech_runs / "tuned"), "--out", str(tmp_path / "out")]
    options = ["--sweep", "0", "1", "--keep", "best", "--eval", *SHORT, "text.limit=2"]
    assert main([*words, *options]) == 0
    shown = capsys.readouterr()
    assert f"best alpha: 1 ({tmp_path / 'out'}/sweep.json, sweep.png)" in shown.out  # of equals the higher
    content = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [point["alpha"] for point in content["points"]] == [0, 1]
    results = tmp_path / "out" / "evaluation" / "alpha_0"
    speech, text = (json.loads((results / f"{side}.json").read_text()) for side in ("speech", "text"))
    assert (speech["mode"], speech["sets"]["val"]["count"]) == ("S2M", 3)
    assert (text["mode"], text["sets"]["val"]["count"]) == ("T2T", 2)
    assert main(["chat", str(tmp_path / "out" / "best"), "--text", "What follows red?", "--max-positions", "2"]) == 0


def test_command_exchanges_the_evaluations(speech_runs, tmp_path):
    words = ["merge", str(speech_runs / "base"), str(speech_runs / "tuned"), "--out", str(tmp_path / "out")]
    quiz = ["speech=test_merge_sweep.Quiz", "speech.points=3", "speech_score=-points", "text_weight=0"]
    read = ["text=fac_lightning.evaluation.SpokenQAEvaluation", "text.mode=T2T", "text.max_positions=2"]
    assert main([*words, "--sweep", "0.5", "--eval", *quiz, *read]) == 0
    content = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert content["points"][0]["speech"] == content["points"][0]["value"] == -3
    text = json.loads((tmp_path / "out" / "evaluation" / "alpha_0.5" / "text.json").read_text())
    assert (text["mode"], text["sets"]["val"]["count"]) == ("T2T", 3)  # the spoken questions, read


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--sweep", "--alpha", "0.5"], "--alpha is one merge and --sweep is several"),
        (["--keep", "best"], "--keep: only a sweep evaluates; add --sweep"),
        (["--sweep", "--eval", "speech.modes=S2M"], "takes no 'modes'. Did you mean 'mode'?"),
        (["--sweep", "--eval", "~speech.sets.val"], "no validation dialogues: name some, --eval speech.sets.mine="),
        (["--sweep", "--eval", "~text.sets"], "no validation dialogues: name some, --eval text.sets.mine=folder"),
        (["--sweep", "--eval", "text=fac_lightning.evaluation.TextQAEval"], "Did you mean 'TextQAEvaluation'?"),
        (["--sweep", "--keep", "some"], "invalid choice: 'some'"),
    ],
)
def test_command_says_what_is_wrong(speech_runs, tmp_path, capsys, more, told):
    words = ["merge", str(speech_runs / "base"), str(speech_runs / "tuned"), "--out", str(tmp_path / "out")]
    assert main([*words, *more]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_a_stage_of_a_pipeline(speech_runs, tmp_path, capsys):
    def judge(name):
        return {"_target_": f"fac_lightning.evaluation.{name}", "_partial_": True, "sets": {"v": f"{speech_runs}/val"}}

    job = {
        "_target_": "fac_lightning.merging.MergeSweep",
        "base": str(speech_runs / "base"),
        "tuned": str(speech_runs / "tuned"),
        "out": str(tmp_path / "sweep"),
        "alphas": [0.5],
        "speech": {**judge("SpokenQAEvaluation"), "max_positions": 2},
        "text": judge("TextQAEvaluation"),
        "method": {"_target_": "fac_lightning.merging.LinearMerge", "_partial_": True},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"job": job}))
    pipeline = {"vars": {"run": str(tmp_path / "all")}, "stages": {"sweep": {"recipe": "sweep.yaml"}}}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(pipeline))
    assert main(["run", str(tmp_path / "all.yaml")]) == 0
    assert yaml.safe_load((tmp_path / "sweep" / "recipe.yaml").read_text())["job"]["alphas"] == [0.5]
    assert (tmp_path / "sweep" / "best" / "model.safetensors").is_file()
    capsys.readouterr()
    assert main(["run", str(tmp_path / "all.yaml")]) == 0
    assert "done before" in capsys.readouterr().out


def test_the_job_is_listed(capsys):
    assert main(["list", "merging"]) == 0
    assert "fac_lightning.merging.MergeSweep\n" in capsys.readouterr().out
