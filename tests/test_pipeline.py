"""Stages run once, continue where they stopped, and run again when what makes them changes."""

import json
import mmap
import os
import subprocess
import sys

import pytest

from fac_lightning.pipeline import (
    Origin,
    PeakMemory,
    StageError,
    choose_stages,
    differences,
    mark,
    plan_stages,
    preview,
    run_pipeline,
)
from fac_lightning.pipeline.inputs import HEAD_BYTES


class Bench:
    """A pipeline of jobs whose work is to write a file: data -> base -> (one, two) -> judge, and one on its own."""

    def __init__(self, folder):
        self.folder, self.ran, self.told, self.notes = folder, [], [], []
        self.stages = {
            "data": {"recipe": "data.yaml"},
            "base": {"recipe": "base.yaml", "overrides": {"reads": self.out("data/train")}},
            "one": {"recipe": "one.yaml", "overrides": {"reads": self.out("base"), "size": 3}},
            "two": {"recipe": "two.yaml", "overrides": {"reads": [self.out("base"), self.out("data")]}},
            "judge": {"recipe": "judge.yaml", "overrides": {"reads": self.out("one")}, "after": ["two"]},
            "alone": {"recipe": "alone.yaml"},
        }

    def out(self, name):
        return str(self.folder / "run" / name)

    def compose(self, recipe, words):
        name = recipe.removesuffix(".yaml")
        values = {key: json.loads(value) for key, value in (word.split("=", 1) for word in words)}
        return {
            "vars": {"all": self.out("judge")},
            "seed": 7,
            "job": {"_target_": "x.Y", "out": self.out(name), **values},
        }

    def work(self, stage):
        self.ran.append(stage.name)
        stage.out.mkdir(exist_ok=True)
        (stage.out / "artefact").write_text(json.dumps(stage.recipe["job"]))
        return {"size": len(stage.name)}

    def plan(self):
        return plan_stages(self.stages, self.compose)

    def call(self, work=None, **choice):
        self.ran.clear()
        self.told.clear()
        self.notes.clear()
        stages = self.plan()
        chosen = choose_stages(stages, **choice)
        return run_pipeline(stages, self.folder / "run", work or self.work, self.tell, chosen)

    def tell(self, stage, what, why):
        (self.notes if what == "note" else self.told).append((stage.name, what, why))

    def look(self, **choice):
        stages = self.plan()
        found = preview(stages, self.folder / "run", choose_stages(stages, **choice))
        return {one.stage.name: (one.action, one.why) for one in found}

    def would_run(self, **choice):
        return [name for name, (action, _) in self.look(**choice).items() if action in ("start", "resume")]

    def provenance(self, name):
        return json.loads((self.folder / "run" / name / "provenance.json").read_text())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


ALL = ["data", "base", "one", "two", "judge", "alone"]


def test_second_call_finds_everything_done(bench):
    first = bench.call()
    assert bench.ran == ALL
    second = bench.call()
    assert bench.ran == []
    assert [what for _, what, _ in bench.told] == ["skip"] * 6
    assert second == first
    assert second["base"].result == {"size": 4}


def test_a_stage_needs_what_its_recipe_names_and_what_it_says_it_needs(bench):
    needs = {stage.name: stage.needs for stage in bench.plan()}
    assert needs["data"] == needs["alone"] == {}
    assert needs["base"] == {"data": f"job.reads = {bench.out('data/train')}"}
    assert set(needs["two"]) == {"base", "data"}
    assert needs["judge"] == {"one": f"job.reads = {bench.out('one')}", "two": "after"}  # vars alone do not count


def test_stages_run_behind_what_they_need_wherever_they_stand(bench):
    bench.stages = dict(reversed(bench.stages.items()))
    bench.call()
    assert bench.ran == ["alone", "data", "base", "two", "one", "judge"]


@pytest.mark.parametrize(
    ("changed", "again"),
    [("data", ["data", "base", "one", "two", "judge"]), ("one", ["one", "judge"]), ("alone", ["alone"])],
)
def test_a_change_runs_the_stage_and_what_depends_on_it_and_nothing_else(bench, changed, again):
    bench.call()
    bench.stages[changed].setdefault("overrides", {})["size"] = 4
    assert bench.would_run() == again
    bench.call()
    assert bench.ran == again
    assert (bench.folder / "run" / f"{changed}.old-1" / "artefact").exists()
    assert bench.would_run() == []


def test_why_a_stage_runs_is_told(bench):
    assert bench.look()["data"] == ("start", "has not run yet")
    bench.call()
    bench.stages["base"]["overrides"]["size"] = 2
    bench.stages["one"]["overrides"] |= {"size": 4, "name": "x" * 100}
    assert bench.look() == {
        "data": ("skip", bench.look()["data"][1]),
        "base": ("start", "job.size: (not there) -> 2"),
        "one": ("start", f'job.size: 3 -> 4; job.name: (not there) -> "{"x" * 56}...; base changes'),
        "two": ("start", "base changes"),
        "judge": ("start", "two changes; one changes"),
        "alone": ("skip", bench.look()["alone"][1]),
    }
    assert bench.look()["data"][1].endswith(", 0 s")
    assert not (bench.folder / "run" / "base.old-1").exists(), "looking moves nothing"


def test_changing_back_takes_the_old_artefacts_back(bench):
    states = bench.call()
    bench.stages["base"]["overrides"]["size"] = 2
    bench.call()
    assert bench.ran == ["base", "one", "two", "judge"]
    del bench.stages["base"]["overrides"]["size"]
    assert bench.look()["base"][0] == "restore"
    assert bench.call() == states
    assert bench.ran == []
    assert ("base", "restore") in [told[:2] for told in bench.told]
    assert "size" not in json.loads((bench.folder / "run" / "base" / "artefact").read_text())
    assert "size" in json.loads((bench.folder / "run" / "base.old-2" / "artefact").read_text())
    assert bench.would_run() == []


def test_an_artefact_that_is_gone_or_replaced_is_made_again(bench):
    bench.call()
    for file in (bench.folder / "run" / "one").iterdir():
        file.unlink()
    (bench.folder / "run" / "alone").rename(bench.folder / "elsewhere")
    assert bench.look()["one"] == ("start", f"{bench.out('one')} is not what was left there")
    assert bench.look()["alone"] == ("start", f"{bench.out('alone')} is gone")
    assert bench.would_run() == ["one", "alone"], "the same recipe makes the same artefact again"


def test_interrupted_stage_continues_in_its_own_folder_and_earlier_artefacts_stay(bench):
    def broken(stage):
        if stage.name != "one":
            return bench.work(stage)
        stage.out.mkdir()
        (stage.out / "half").write_text("x")
        raise RuntimeError("power cut\nand more")

    with pytest.raises(RuntimeError, match="power cut") as caught:
        bench.call(broken)
    assert caught.value.__notes__ == [
        "stage 'one' stopped after 0 s; done and kept: data, base. The same command goes on from here"
    ]
    assert bench.told[-1] == ("one", "failed", "RuntimeError: power cut")
    assert bench.look()["one"] == ("resume", "stopped after 0 s: RuntimeError: power cut")
    states = bench.call()
    assert bench.ran == ["one", "two", "judge", "alone"]
    assert ("one", "resume") in [told[:2] for told in bench.told]
    assert (bench.folder / "run" / "one" / "half").exists()
    assert states["one"].done
    assert states["one"].error is None
    assert json.loads((bench.folder / "run" / "stages" / "one.json").read_text())["done"] is True


def test_a_stage_that_was_killed_goes_on(bench):
    bench.call(until="data")
    path = bench.folder / "run" / "stages" / "data.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "done": False, "finished": ""}))
    assert bench.look()["data"] == ("resume", "was cut off")


def test_two_processes_do_not_work_on_one_run(bench):
    def twice(stage):
        Bench(bench.folder).call()

    with pytest.raises(StageError, match=r"another process is at work on .*/run; wait for it, or take another folder"):
        bench.call(twice)
    assert bench.look()["data"][0] == "resume"


def test_interrupted_stage_whose_recipe_changed_starts_afresh(bench):
    def broken(stage):
        bench.work(stage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.call(broken)
    assert bench.look()["data"] == ("resume", "stopped after 0 s: KeyboardInterrupt")
    bench.stages["data"]["overrides"] = {"size": 1}
    assert bench.look()["data"] == ("start", "job.size: (not there) -> 1")
    bench.call()
    assert (bench.folder / "run" / "data.old-1").exists()


def test_from_until_and_only_choose_stages(bench):
    bench.call(until="one")
    assert bench.ran == ["data", "base", "one"]
    with pytest.raises(StageError, match=r"stage 'judge' needs 'two' \(after\), which is not done .* \(--until two\)"):
        bench.call(only="judge")
    bench.call(start="base")
    assert bench.ran == ["two", "judge"]
    bench.stages["data"]["overrides"] = {"size": 1}
    bench.stages["base"]["overrides"]["size"] = 1
    assert bench.would_run(start="base", until="two") == ["base", "two"]
    assert bench.look(only="one")["base"] == ("leave", "job.size: (not there) -> 1")
    bench.call(only="one")
    assert bench.ran == [], "what it needs is used as it is"
    bench.call(start="base", until="two")
    assert bench.ran == ["base", "two"]
    assert bench.would_run() == ["data", "base", "one", "two", "judge", "alone"], "data has changed and was left out"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"start": "bas"}, "there is no stage 'bas'. Did you mean 'base'. Stages: data, base"),
        ({"only": "one", "until": "two"}, "--only names one stage: leave out --from and --until"),
        ({"start": "one", "until": "two"}, "two does not need one, so no stage lies between --from one and --until"),
    ],
)
def test_senseless_choices_are_refused(bench, choice, message):
    with pytest.raises(StageError, match=message):
        choose_stages(bench.plan(), **choice)


def test_files_from_elsewhere_count_by_what_is_in_them(bench):
    file = bench.folder / "questions.jsonl"
    file.write_text("who?")
    bench.stages["base"]["overrides"]["questions"] = str(file)
    bench.call()
    os.utime(file, (1, 1))
    assert bench.would_run() == [], "touched, not changed"
    file.write_text("what?")
    assert bench.look()["base"] == ("start", f"{file} has changed")
    assert bench.would_run() == ["base", "one", "two", "judge"]
    bench.call()
    assert bench.would_run() == []
    file.unlink()
    assert bench.look()["base"] == ("start", f"{file} is gone")


@pytest.mark.parametrize("interruptions", [0, 1])
def test_a_folder_that_a_stage_writes_to_itself_is_a_cache(bench, interruptions):
    caches = [bench.folder / "cold", bench.folder / "warm"]
    caches[1].mkdir()
    for name in ("base", "one"):
        bench.stages[name]["overrides"]["caches"] = [str(cache) for cache in caches]
    power_cuts = [True] * interruptions

    def work(stage):
        if stage.name in ("base", "one"):
            for cache in caches:
                cache.mkdir(exist_ok=True)
                (cache / stage.name).write_text(stage.name)
        if stage.name == "one" and power_cuts:
            power_cuts.pop()
            raise RuntimeError("power cut")
        return bench.work(stage)

    for _ in range(interruptions):
        with pytest.raises(RuntimeError, match="power cut"):
            bench.call(work)
        assert bench.look()["one"][0] == "resume"
    bench.call(work)
    assert bench.would_run() == []
    assert bench.provenance("base")["caches"] == sorted(map(str, caches))
    assert bench.provenance("base")["inputs"] == {}
    (caches[0] / "more").write_text("later")
    assert bench.would_run() == []


def test_marks_change_with_what_they_stand_for(tmp_path):
    assert mark(tmp_path / "nothing") is None
    assert mark("x" * 5000) is None
    small, large, folder = tmp_path / "small", tmp_path / "large", tmp_path / "folder"
    small.write_text("a")
    first = mark(small)
    os.utime(small, (1, 1))
    assert mark(small) == first
    small.write_text("b")
    assert mark(small) != first
    large.write_bytes(b"a" * (HEAD_BYTES + 5))
    first = mark(large)
    assert mark(large) == first
    os.utime(large, (1, 1))
    assert mark(large) != first
    (folder / "sub").mkdir(parents=True)
    empty = mark(folder)
    (folder / "sub" / "x").write_text("a")
    first = mark(folder)
    assert first != empty
    os.utime(folder / "sub" / "x", (1, 1))
    assert mark(folder) != first
    (folder / "provenance.json").write_text('{"key": "abc"}')
    assert mark(folder) == mark(folder / "sub" / "x") == "artefact abc"
    (folder / "provenance.json").write_text('["of another program"]')
    assert mark(folder) not in ("artefact abc", None)


def test_the_artefact_of_another_pipeline_counts_by_its_key(bench, tmp_path):
    bench.call()
    other = Bench(tmp_path / "other")
    other.stages = {"late": {"recipe": "late.yaml", "overrides": {"reads": bench.out("one/artefact")}}}
    other.call()
    assert other.provenance("late")["inputs"] == {
        bench.out("one/artefact"): f"artefact {bench.provenance('one')['key']}"
    }


def test_provenance_says_what_made_an_artefact(bench):
    (bench.folder / "x.txt").write_text("x")
    bench.stages["base"]["overrides"]["text"] = str(bench.folder / "x.txt")
    states = bench.call()
    found = bench.provenance("base")
    assert found["stage"] == "base"
    assert found["key"] == states["base"].key != states["data"].key
    assert found["needs"] == {"data": {"key": states["data"].key, "folder": bench.out("data")}}
    assert list(found["inputs"]) == [str(bench.folder / "x.txt")]
    assert found["recipe"]["job"]["text"] == str(bench.folder / "x.txt")
    assert (found["seed"], found["recipe_file"]) == (7, "base.yaml")
    assert {"fac_lightning", "torch", "lightning", "transformers", "python"} <= set(found["versions"])
    assert found["git"] is None or set(found["git"]) == {"commit", "dirty"}
    assert "pytest" in found["command"]
    assert found["started"] <= found["finished"]
    assert found["seconds"] >= 0
    assert found["peak_rss_mb"] > 1
    assert found["result"] == {"size": 4}


def test_init_from_is_the_folder_of_a_stage(bench):
    def compose(recipe, words):
        composed = bench.compose(recipe, [word for word in words if not word.startswith("init_from")])
        start = [json.loads(word.split("=")[1]) for word in words if word.startswith("init_from")]
        return {"trainer": {"default_root_dir": composed["job"]["out"]}, **({"init_from": start[0]} if start else {})}

    bench.stages = {"late": {"recipe": "late.yaml", "init_from": "early"}, "early": {"recipe": "early.yaml"}}
    stages = plan_stages(bench.stages, compose)
    assert [stage.name for stage in stages] == ["early", "late"]
    assert stages[1].recipe["init_from"] == bench.out("early")
    assert stages[1].needs == {"early": "init_from"}
    assert stages[1].words == (f'init_from="{bench.out("early")}"',)
    with pytest.raises(
        StageError, match=r"late\.yaml is a job, which starts from no weights; write the folder of early"
    ):
        plan_stages(bench.stages, bench.compose)


def test_overrides_reach_the_recipe_as_command_line_strings(bench):
    bench.stages = {
        "one": {"recipe": "one.yaml", "overrides": {"trainer": {"max_steps": 5}, "vars.name": "x=y", "modes": None}}
    }
    seen = []
    plan_stages(bench.stages, lambda recipe, words: seen.extend(words) or bench.compose(recipe, []))
    assert seen == ["trainer.max_steps=5", 'vars.name="x=y"', "modes=null"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"recipe": "c.yaml", "afetr": []}, r"stages.c has unknown keys \['afetr'\]; a stage takes recipe, overrides"),
        ({"overrides": {}}, "stages.c has no 'recipe'"),
        (None, "stages.c is None; a stage is a mapping of recipe, overrides, init_from, after"),
        ({"recipe": "c.yaml", "overrides": ["x=1"]}, r"stages.c.overrides is \['x=1'\]; it takes a mapping"),
        (
            {"recipe": "c.yaml", "after": ["on"]},
            "stages.c.after names 'on', and there is no such stage. Did you mean 'one'. Stages: data, base",
        ),
        ({"recipe": "c.yaml", "init_from": "runs/x"}, "names 'runs/x', .* from elsewhere set overrides.init_from"),
        ({"recipe": "c.yaml", "init_from": "c"}, r"stages go round in a circle: c needs c \(init_from\)"),
        ({"recipe": "one.yaml"}, "stage 'one' writes to .*/run/one, which lies in .*/run/one of stage 'c'"),
        ({"recipe": "one/deep.yaml"}, "stage 'c' writes to .*/run/one/deep, which lies in .* of stage 'one'"),
    ],
)
def test_mistakes_in_a_stage_are_named(bench, node, message):
    bench.stages["c"] = node
    with pytest.raises(StageError, match=message):
        bench.plan()


def test_a_circle_is_one_line_that_says_why(bench):
    bench.stages["data"]["overrides"] = {"reads": bench.out("judge/best")}
    with pytest.raises(StageError) as caught:
        bench.plan()
    assert str(caught.value) == (
        f"stages go round in a circle: data needs judge (job.reads = {bench.out('judge/best')}), "
        f"judge needs two (after), two needs base (job.reads.0 = {bench.out('base')}), "
        f"base needs data (job.reads = {bench.out('data/train')})"
    )


def test_stage_without_an_output_folder_is_refused(bench):
    with pytest.raises(StageError, match="'data' has no output folder"):
        plan_stages(bench.stages, lambda recipe, overrides: {"job": {}})


def test_stage_that_writes_over_the_records_is_refused(bench):
    with pytest.raises(StageError, match=r"stage 'one' writes to .*, where the pipeline keeps its records"):
        preview(bench.plan(), bench.folder / "run" / "one")


def test_records_of_an_earlier_version_run_once_more(bench):
    bench.call()
    path = bench.folder / "run" / "stages" / "one.json"
    path.write_text(json.dumps({"key": "abc", "done": True, "seconds": 3.0, "peak_rss_mb": 5.0, "result": None}))
    assert "earlier version of the pipeline" in bench.look()["one"][1]
    bench.call()
    assert bench.would_run() == []


def test_differences_are_told_in_few_words():
    old = Origin("1", {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1.0}]}, {"x": "1"}, {"s": "k"})
    assert differences(old, old) == ""
    new = Origin("2", {"a": {"b": 2, "c": [1]}, "d": [{"e": 1.0}, {}]}, {"y": "1"}, {"t": "k"})
    assert differences(old, new) == "a.b: 1 -> 2; a.c: [1, 2] -> [1]; d.1: (not there) -> {}; and 5 more"
    assert differences(Origin("1", {}, {}, {}), Origin("1", {}, {"x": "1"}, {})) == "x is new"
    assert differences(Origin("1", {}, {}, {}), Origin("1", {}, {"x": "1"}, {}), finished=False) == ""
    assert old.key == Origin("1", dict(reversed(old.recipe.items())), {"x": "1"}, {"s": "k"}).key != new.key


def test_a_dry_run_is_quick_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys, time\n"
        "from fac_lightning.cli import main\n"
        "assert main(['run', 'tiny/quickstart', '--dry-run', '--until', 'sft']) == 0\n"
        "print(sorted({'torch', 'lightning', 'transformers', 'lhotse', 'numpy'} & set(sys.modules)))\n"
        "print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    head, *rows, heavy, seconds = done.stdout.splitlines()
    assert head == "tiny/quickstart in runs/quickstart: 5 of 7 stages would run"
    assert rows[4] == "  5  sft             runs           has not run yet  [needs align, llm, world, text_tokenizer]"
    assert rows[5].startswith("  6  evaluate        left as it is")
    assert heavy == "[]"
    assert float(seconds) < 1
    assert not list(tmp_path.iterdir())


def test_peak_memory_sees_an_allocation():
    with PeakMemory(interval=0.01) as idle:
        pass
    with PeakMemory(interval=0.01) as busy:
        # fresh pages of the system: the heap of a long test session may hold as much that is free and resident
        block = mmap.mmap(-1, 80 * 2**20)
        block[:: mmap.PAGESIZE] = b"1" * (len(block) // mmap.PAGESIZE)
    assert busy.megabytes > idle.megabytes + 60
    block.close()
