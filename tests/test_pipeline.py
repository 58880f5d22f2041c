"""Stages run once, continue where they stopped, and run again when what makes them changes."""

import json
import mmap

import pytest

from fac_lightning.pipeline import PeakMemory, StageError, plan_stages, run_pipeline


class Bench:
    """A pipeline of two jobs, b after a, whose work is to write a file."""

    def __init__(self, folder):
        self.folder, self.ran, self.told = folder, [], []
        self.stages = {"a": {"recipe": "a.yaml"}, "b": {"recipe": "b.yaml", "overrides": {"job": {"size": 3}}}}

    def compose(self, recipe, overrides):
        name = recipe.removesuffix(".yaml")
        return {"job": {"_target_": "x.Y", "out": str(self.folder / name), "overrides": overrides}}

    def work(self, stage):
        self.ran.append(stage.name)
        stage.out.mkdir(exist_ok=True)
        (stage.out / "artefact").write_text(stage.key)
        return {"size": len(stage.name)}

    def call(self, work=None):
        self.ran.clear()
        self.told.clear()
        plan = plan_stages(self.stages, self.compose)
        return run_pipeline(plan, self.folder, work or self.work, lambda s, what: self.told.append((s.name, what)))


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_second_call_finds_everything_done(bench):
    first = bench.call()
    assert bench.ran == ["a", "b"]
    second = bench.call()
    assert bench.ran == []
    assert bench.told == [("a", "skip"), ("b", "skip")]
    assert second == first
    assert second["b"].result == {"size": 1}


def test_changed_stage_runs_again_with_what_depends_on_it_and_nothing_is_lost(bench):
    bench.call()
    bench.stages["b"]["overrides"] = {"job": {"size": 4}}
    bench.call()
    assert bench.ran == ["b"]
    assert (bench.folder / "b.old-1" / "artefact").exists()
    bench.stages["a"]["overrides"] = {"job.size": 1}
    bench.call()
    assert bench.ran == ["a", "b"]


def test_independent_stage_is_left_alone(bench):
    bench.stages["b"]["after"] = []
    bench.call()
    bench.stages["a"]["overrides"] = {"job.size": 1}
    bench.call()
    assert bench.ran == ["a"]


def test_interrupted_stage_continues_in_its_own_folder(bench):
    def broken(stage):
        stage.out.mkdir()
        (stage.out / "half").write_text("x")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        bench.call(broken)
    states = bench.call()
    assert ("a", "resume") in bench.told
    assert (bench.folder / "a" / "half").exists()
    assert states["a"].done
    assert json.loads((bench.folder / "stages" / "a.json").read_text())["done"] is True


def test_overrides_reach_the_recipe_as_command_line_strings(bench):
    bench.stages["b"]["overrides"] = {"trainer": {"max_steps": 5}, "vars.name": "x=y", "data": {"modes": None}}
    plan = plan_stages(bench.stages, bench.compose)
    assert plan[1].recipe["job"]["overrides"] == ["trainer.max_steps=5", 'vars.name="x=y"', "data.modes=null"]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"recipe": "c.yaml", "afetr": []}, r"stages.c has unknown keys \['afetr'\]"),
        ({"overrides": {}}, "stages.c has no 'recipe'"),
        ({"recipe": "c.yaml", "after": ["z"]}, r"stages.c.after names \['z'\]"),
    ],
)
def test_mistakes_in_a_stage_are_named(bench, node, message):
    bench.stages["c"] = node
    with pytest.raises(StageError, match=message):
        plan_stages(bench.stages, bench.compose)


def test_stage_without_an_output_folder_is_refused(bench):
    with pytest.raises(StageError, match="'a' has no output folder"):
        plan_stages(bench.stages, lambda recipe, overrides: {"job": {}})


def test_peak_memory_sees_an_allocation():
    with PeakMemory(interval=0.01) as idle:
        pass
    with PeakMemory(interval=0.01) as busy:
        # fresh pages of the system: the heap of a long test session may hold as much that is free and resident
        block = mmap.mmap(-1, 80 * 2**20)
        block[:: mmap.PAGESIZE] = b"1" * (len(block) // mmap.PAGESIZE)
    assert busy.megabytes > idle.megabytes + 60
    block.close()
