"""Stages side by side, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fac_lightning.cli import main
from fac_lightning.pipeline import StageError, plan_stages, run_pipeline

WIDE = {"data": [], "left": ["data"], "right": ["data"], "both": ["left", "right"], "alone": []}


def plan(folder):
    stages = {name: {"recipe": name, "after": needs} for name, needs in WIDE.items()}
    return plan_stages(stages, lambda name, words: {"job": {"_target_": "x.Y", "out": str(folder / name)}})


def work(stage):
    """Left and right wait for each other: neither ends unless both are at work."""
    stage.out.mkdir(exist_ok=True)
    sys.stdout.write(f"this is {stage.name}\n")
    other = {"left": "right", "right": "left"}.get(stage.name)
    stop = time.monotonic() + 60
    while other and not (stage.out.parent / other).exists():
        assert time.monotonic() < stop, f"{other} was never at work beside {stage.name}"
        time.sleep(0.01)
    return {"threads": os.environ["OMP_NUM_THREADS"], "process": os.getpid()}


def broken(stage):
    if stage.name == "left":
        raise ValueError("no room")
    if stage.name == "right":
        os.kill(os.getpid(), signal.SIGKILL)
    return work(stage)


def test_stages_that_do_not_need_each_other_run_side_by_side(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    told = []
    done = run_pipeline(
        plan(tmp_path), tmp_path, work, lambda stage, what, why: told.append((stage.name, what)), jobs=2
    )
    assert set(done) == set(WIDE)
    assert {state.result["threads"] for state in done.values()} == {"3"}, "the machine's threads are shared out"
    assert len({state.result["process"] for state in done.values()} - {os.getpid()}) == len(WIDE)
    assert all(state.peak_rss_mb > 0 for state in done.values())
    assert "OMP_NUM_THREADS" not in os.environ
    assert told.index(("both", "start")) > max(told.index(("left", "done")), told.index(("right", "done")))
    assert (tmp_path / "stages" / "left.log").read_text() == "this is left\n"
    told.clear()
    run_pipeline(plan(tmp_path), tmp_path, work, lambda stage, what, why: told.append(what), jobs=2)
    assert told == ["skip"] * len(WIDE)


@pytest.mark.parametrize(
    ("chosen", "error"), [("left", "no room"), ("right", "process of stage 'right' was killed; see")]
)
def test_what_fails_is_named_and_nothing_that_needs_it_runs(tmp_path, chosen, error):
    with pytest.raises((ValueError, StageError), match=error) as caught:
        run_pipeline(plan(tmp_path), tmp_path, broken, chosen={"data", chosen, "both"} - {"both"}, jobs=2)
    assert f"stage {chosen!r} stopped after" in caught.value.__notes__[0]
    record = json.loads((tmp_path / "stages" / f"{chosen}.json").read_text())
    assert not record["done"]
    assert error in record["error"]
    assert json.loads((tmp_path / "stages" / "data.json").read_text())["done"]


def test_a_cache_that_two_stages_share_runs_nothing_again(tmp_path):
    cache, run = tmp_path / "cache", tmp_path / "run"
    cache.mkdir()
    stages = plan_stages(
        {name: {"recipe": name} for name in ("first", "second")},
        lambda name, words: {"job": {"_target_": "x.Y", "cache": str(cache), "out": str(run / name)}},
    )
    done = run_pipeline(stages, run, fill, jobs=2)
    assert not done["second"].wrote, "it ended before the other one wrote"
    assert done["first"].wrote == [str(cache)]
    told = []
    run_pipeline(stages, run, fill, lambda stage, what, why: told.append((what, why)), jobs=2)
    assert [what for what, _ in told] == ["skip", "skip"], told


def fill(stage):
    stage.out.mkdir()
    if stage.name == "first":
        record, stop = Path(stage.out.parent / "stages" / "second.json"), time.monotonic() + 60
        while not (record.exists() and json.loads(record.read_text())["done"]):
            assert time.monotonic() < stop, "second never ended"
            time.sleep(0.01)
        (Path(stage.recipe["job"]["cache"]) / "features").write_text("x")


def test_no_hands_is_refused(tmp_path, capsys):
    with pytest.raises(StageError, match="jobs is 0: give the stages that may be at work at a time, 1 or more"):
        run_pipeline(plan(tmp_path), tmp_path, work, jobs=0)
    (tmp_path / "job.yaml").write_text("job: {_target_: recipe_parts.Job, out: '???'}\n")
    assert main(["run", str(tmp_path / "job.yaml"), "--jobs", "2"]) == 2
    assert "--jobs is for pipelines, and" in capsys.readouterr().err


def test_the_command_line_runs_stages_side_by_side(tmp_path, capfd):
    (tmp_path / "job.yaml").write_text(f"job: {{_target_: recipe_parts.Job, out: {tmp_path}/run/none}}\n")
    one, two = (
        f"{name}: {{recipe: job.yaml, overrides: {{job.out: {tmp_path}/run/{name}}}}}" for name in ("one", "two")
    )
    (tmp_path / "wide.yaml").write_text(f"vars: {{run: {tmp_path}/run}}\nstages:\n  {one}\n  {two}\n")
    assert main(["run", str(tmp_path / "wide.yaml"), "--jobs", "2"]) == 0
    shown = capfd.readouterr().out
    assert "[1/2] one: done" in shown
    assert "[2/2] two: done" in shown
    assert (tmp_path / "run" / "two" / "provenance.json").exists()


def wait(stage):
    stage.out.mkdir()
    (stage.out / "process").write_text(str(os.getpid()))
    time.sleep(60)


def at_work(folder):
    """Processes of the stages that have begun, once there are two."""
    stop = time.monotonic() + 60
    while len(found := [int(file.read_text() or 0) for file in folder.glob("*/process")]) < 2 or 0 in found:
        assert time.monotonic() < stop, "no two stages were ever at work"
        time.sleep(0.05)
    return found


def gone(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux's /proc who is alive")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stages_end_with_the_pipeline(tmp_path, how):
    (tmp_path / "main.py").write_text(
        "import signal\nimport sys\nfrom pathlib import Path\nimport test_pipeline_jobs as jobs\n"
        "if __name__ == '__main__':\n    folder = Path(sys.argv[1])\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # what runs in the background ignores it
        "    stages = [stage for stage in jobs.plan(folder) if stage.name in ('data', 'alone')]\n"
        "    jobs.run_pipeline(stages, folder, jobs.wait, jobs=2)\n"
    )
    folder = tmp_path / "run"
    words = [sys.executable, str(tmp_path / "main.py"), str(folder)]
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": paths}, stderr=subprocess.PIPE) as pipeline:
        stages = at_work(folder)
        pipeline.send_signal(how)
        pipeline.communicate(timeout=60)
    stop = time.monotonic() + 30
    while not all(gone(process) for process in stages):
        assert time.monotonic() < stop, "a stage works on for nobody"
        time.sleep(0.1)
