"""Merging on disk: the same bits as in memory, a block at a time, and never half a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from fac_lightning.callbacks import load_weights
from fac_lightning.cli import load_run, main
from fac_lightning.merging import (
    DareMerge,
    FileSource,
    LinearMerge,
    LMCocktailMerge,
    SlerpMerge,
    StreamedWriter,
    TaskArithmeticMerge,
    TensorSpec,
    TiesMerge,
    WeightMerge,
    execute,
    merge_files,
    merge_state_dicts,
)
from fac_lightning.testing import tiny_backbone
from fac_lightning.weights import CheckpointError
from recipe_parts import Adapter, Model
from test_merging import llm, speech


def shard(state, folder: Path, count: int = 3) -> Path:
    """A model in several files with an index, as hubs have it."""
    folder.mkdir()
    names = sorted(state)
    owners = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)}
    for file in set(owners.values()):
        save_file({name: state[name] for name in names if owners[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": owners}))
    return folder


@pytest.fixture
def models(tmp_path, monkeypatch):
    """State dicts of a base and a tuned model with a larger vocabulary, and their files; blocks are tiny."""
    monkeypatch.setattr(execute, "BLOCK", 5)
    base = {name: tensor.bfloat16() for name, tensor in llm(tied=False).items()}
    tuned = {name: t.bfloat16() if t.is_floating_point() else t for name, t in speech(base, rows=11).items()}
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    return base, tuned, tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def same(one, two):
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


METHODS = [
    LinearMerge(0.3, alphas={"*norm*": 0.9}),
    SlerpMerge(0.3),
    TaskArithmeticMerge(0.3),
    TiesMerge(density=0.4),
    DareMerge(density=0.4),
    LMCocktailMerge(losses=[1.0]),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_streaming_gives_the_bits_of_memory(models, tmp_path, method):
    base, tuned, base_file, tuned_file = models
    report = merge_files(base_file, tuned_file, tmp_path / "out", method)
    expected = merge_state_dicts(base, [tuned], method)
    assert same(load_file(tmp_path / "out" / "model.safetensors"), expected.weights)
    assert {t.name: t for t in report.tensors} == {t.name: t for t in expected.report.tensors}


def test_blocks_are_invisible(models, tmp_path, monkeypatch):
    _, _, base_file, tuned_file = models
    merge_files(base_file, tuned_file, tmp_path / "blocks", LinearMerge(0.3))
    monkeypatch.setattr(execute, "BLOCK", 1 << 16)
    merge_files(base_file, tuned_file, tmp_path / "whole", LinearMerge(0.3))
    blocks, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("blocks", "whole"))
    assert same(blocks, whole)


def test_both_ends_are_the_models_bit_for_bit(models, tmp_path):
    base, tuned, base_file, tuned_file = models
    merge_files(base_file, tuned_file, tmp_path / "one", LinearMerge(1.0))
    assert same(load_file(tmp_path / "one" / "model.safetensors"), tuned)
    merge_files(base_file, tuned_file, tmp_path / "zero", LinearMerge(0.0))
    merged = load_file(tmp_path / "zero" / "model.safetensors")
    for name, tensor in base.items():
        assert torch.equal(merged[f"backbone.{name}"][: len(tensor)], tensor)


def test_shards_give_what_one_file_gives(models, tmp_path):
    base, tuned, base_file, tuned_file = models
    many = shard(base, tmp_path / "base"), shard(tuned, tmp_path / "tuned")
    merge_files(base_file, tuned_file, tmp_path / "one", LinearMerge(0.3))
    merge_files(*many, tmp_path / "many", LinearMerge(0.3))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    merged = {name: tensor for file in files for name, tensor in load_file(file).items()}
    single = load_file(tmp_path / "one" / "model.safetensors")
    assert same({name: merged[name] for name in single}, single)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in merged.values())
    assert all(name in load_file(tmp_path / "many" / file) for name, file in index["weight_map"].items())


def test_memory_is_one_block_of_each_model(tmp_path, monkeypatch):
    """A counting reader and a counting method: nothing larger than a block is ever read or computed."""
    monkeypatch.setattr(execute, "BLOCK", 1000)
    state = {"w": torch.randn(100, 100), "v": torch.randn(3000)}
    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors")
    read, computed, live = [], [], []
    original = FileSource.read

    def counting(self, name, start, stop):
        piece = original(self, name, start, stop)
        read.append(stop - start)
        live.append(self._buffer.numel())
        return piece

    class Counting(LinearMerge):
        def merge(self, name, base, tuned):
            computed.append(base.numel())
            return super().merge(name, base, tuned)

    monkeypatch.setattr(FileSource, "read", counting)
    merge_files(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out", Counting(0.5))
    assert max(read) == max(computed) == 1000
    assert max(live) == 4000  # bytes of the one buffer that a model has
    assert sum(computed) == 13000


def test_memory_of_the_process_does_not_grow_with_the_model(tmp_path):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell the anonymous memory of a process")

    def megabytes():
        return int(next(x for x in status.read_text().splitlines() if x.startswith("RssAnon")).split()[1]) / 1024

    state = {f"layers.{i}.weight": torch.zeros(2 << 20, dtype=torch.bfloat16) for i in range(12)}  # 48 MB
    save_file(state, tmp_path / "a.safetensors")
    save_file(state, tmp_path / "b.safetensors")
    del state
    before, seen = megabytes(), []
    merge_files(
        tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out", LinearMerge(0.5),
        progress=lambda done, total: seen.append(megabytes()),
    )  # fmt: skip
    assert max(seen) - before < 12


def test_the_written_file_is_what_the_library_writes(tmp_path):
    tensors = {
        "b": torch.arange(3, dtype=torch.uint8),
        "a": torch.randn(2, 3).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
    }
    specs = {name: TensorSpec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with StreamedWriter(tmp_path / "mine.safetensors", specs, {"format": "pt"}) as writer:
        for name in writer.order:
            for piece in tensors[name].reshape(-1).split(2):
                writer.write(piece)
    assert same(load_file(tmp_path / "mine.safetensors"), tensors)
    save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    with FileSource(tmp_path / "mine.safetensors") as mine, FileSource(tmp_path / "theirs.safetensors") as theirs:
        assert mine.specs == theirs.specs == specs
        for name, tensor in tensors.items():
            assert torch.equal(theirs.read(name, 0, tensor.numel()), tensor.reshape(-1))
        assert list(mine.shards().values()) == list(theirs.shards().values()) == [writer.order]


def test_a_failure_leaves_nothing(models, tmp_path):
    _, _, base_file, tuned_file = models

    class Breaks(LinearMerge):
        def merge(self, name, base, tuned):
            if "layers.1" in name:
                raise RuntimeError("power cut")
            return super().merge(name, base, tuned)

    before = sorted(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="power cut"):
        merge_files(base_file, tuned_file, tmp_path / "out", Breaks())
    assert sorted(tmp_path.iterdir()) == before


def test_what_stands_there_is_not_overwritten_but_by_the_same_merge(models, tmp_path):
    _, _, base_file, tuned_file = models
    out = tmp_path / "out"
    out.mkdir()
    merge_files(base_file, tuned_file, out, LinearMerge(0.5))  # an empty folder is free
    (out / "model.safetensors").write_bytes(b"broken")
    merge_files(base_file, tuned_file, out, LinearMerge(0.5))
    assert load_file(out / "model.safetensors")
    with pytest.raises(ValueError, match="out holds another merge, which is not overwritten"):
        merge_files(base_file, tuned_file, out, LinearMerge(0.6))
    with pytest.raises(ValueError, match="exists and holds no merge"):
        merge_files(base_file, tuned_file, tmp_path, LinearMerge(0.5))
    assert not list(tmp_path.glob(".out*"))


def test_report_is_written_beside(models, tmp_path):
    _, _, base_file, tuned_file = models
    report = merge_files(base_file, [tuned_file], tmp_path / "out", LinearMerge(0.5), exclude=["*norm*"])
    saved = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert saved == json.loads(json.dumps(report.as_json()))
    assert saved["settings"]["method"] == {
        "class": "fac_lightning.merging.linear.LinearMerge", "alpha": 0.5, "alphas": {}, "weights": None,
    }  # fmt: skip
    assert saved["settings"]["exclude"] == ["*norm*"]
    assert saved["rules"] == {"merged": 4, "tuned only": 2, "not asked for": 1}
    assert saved["modules"]["backbone.model.layers.0"]["cosine"][0] < 1
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["merge"]) == saved["settings"]


def test_a_transformers_folder_stays_one(models, tmp_path):
    _, tuned, base_file, _ = models
    folder = shard(tuned, tmp_path / "hub")
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "merges.txt"):
        (folder / name).write_text(name)
    (folder / "notes.bin").write_text("")
    merge_files(base_file, folder, tmp_path / "out", LinearMerge())
    extra = {file.name for file in (tmp_path / "out").iterdir() if file.suffix != ".safetensors"}
    assert extra == {
        "config.json", "tokenizer.json", "chat_template.jinja", "merges.txt", "merge.json",
        "model.safetensors.index.json",
    }  # fmt: skip


def test_transformers_reads_merged_shards(tmp_path):
    from transformers import AutoModelForCausalLM

    for name in ("base", "tuned"):
        tiny_backbone().save_pretrained(tmp_path / name)
        lm = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        shutil.rmtree(tmp_path / name)
        lm.save_pretrained(tmp_path / name, max_shard_size="10KB")
    merge_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", LinearMerge(0.5))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "tuned", "out")]
    base, tuned, merged = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(tensor, torch.lerp(base[name], tuned[name], 0.5)) for name, tensor in merged.items())


def test_tensors_that_share_memory_are_found_under_either_name(tmp_path):
    """`save_model` keeps one of two names and notes the other; base and tuned model may keep different ones."""
    tuned = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    tuned["b"].weight = tuned["a"].weight
    save_model(tuned, str(tmp_path / "tuned.safetensors"), {"format": "pt"})
    kept = next(iter(load_file(tmp_path / "tuned.safetensors")))
    other = {"a.weight": "b.weight", "b.weight": "a.weight"}[kept]
    save_file({other: torch.zeros(2, 2)}, tmp_path / "base.safetensors")
    report = merge_files(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", tmp_path / "out", LinearMerge())
    assert report.rules == {"merged": 1}
    merged = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    merged["b"].weight = merged["a"].weight
    load_weights(merged, tmp_path / "out")
    torch.testing.assert_close(merged["a"].weight, tuned["a"].weight / 2)


# what cannot be read


def test_no_weights_say_what_to_give(tmp_path):
    with pytest.raises(FileNotFoundError, match="a model of a hub must be downloaded first"):
        FileSource("Qwen/Qwen3-0.6B")
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model\.safetensors: has the run ended"):
        FileSource(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(CheckpointError, match=r"holds pytorch_model\.bin, which is no safetensors file"):
        FileSource(tmp_path)
    with pytest.raises(CheckpointError, match="is no safetensors file; give one"):
        FileSource(tmp_path / "pytorch_model.bin")


def test_damaged_files_are_told_apart(tmp_path):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    save_file({"w": torch.randn(50)}, good)
    data = good.read_bytes()
    for content, told in (
        (data[:-7], "cut short or damaged: it has"),
        (data[:20], "its header cannot be"),
        (b"", "its header cannot be 0 bytes"),
        (data.replace(b'"F32"', b'"F4" '), "stored as F4, which is a quantised type"),
        (data.replace(b"[50]", b"[49]"), r"is damaged: w is float32 \(49,\) but has 200 bytes"),
        (data[:8] + b"x" * (len(data) - 8), "its header cannot be read"),
    ):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=told):
            FileSource(bad)


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.randn(5000)}, path)
    with FileSource(path) as source:
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(CheckpointError, match="ends within w: it is cut short"):
            source.read("w", 0, 5000)


def test_incomplete_shards_are_told(models, tmp_path):
    folder = shard(models[0], tmp_path / "hub")
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": good["weight_map"] | {"extra": "model-00001-of-00003.safetensors"}}))
    with pytest.raises(CheckpointError, match="the index names extra, but model-00001"):
        FileSource(folder)
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="is no index of safetensors files"):
        FileSource(folder)
    index.unlink()
    with pytest.raises(CheckpointError, match="holds 3 safetensors files and no index"):
        FileSource(folder)
    index.write_text(json.dumps(good))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is incomplete: model-00002-of-00003"):
        FileSource(folder)


# run folders, the job, the command

RECIPE = """# fac_lightning 0.1.0
seed: 1
model:
  _target_: recipe_parts.Model
  dim: 4
  adapter: {_target_: recipe_parts.Adapter, dim: 4}
data: {_target_: recipe_parts.Data, dim: 4}
"""


@pytest.fixture
def runs(tmp_path):
    """Two run folders, ``base`` and ``tuned``, of one recipe."""
    for name in ("base", "tuned"):
        folder = tmp_path / name
        (folder / "text_tokenizer").mkdir(parents=True)
        (folder / "text_tokenizer" / "tokenizer.json").write_text("{}")
        (folder / "checkpoints").mkdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        save_model(Model(Adapter(4)), str(folder / "model.safetensors"), {"format": "pt"})
    return tmp_path


def middle(runs):
    base, tuned = (load_file(runs / name / "model.safetensors") for name in ("base", "tuned"))
    return {name: torch.lerp(base[name], tuned[name], 0.5) for name in base}


def test_a_merged_run_is_a_run(runs):
    result = WeightMerge(str(runs / "base"), str(runs / "tuned"), str(runs / "merged")).run()
    assert result["rules"] == {"merged": 3}
    shutil.rmtree(runs / "merged" / "text_tokenizer")
    run = load_run(runs / "merged", allow=["recipe_parts."])
    state = run.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in middle(runs).items())
    assert run.model.out.weight is run.model.embed.weight
    text = (runs / "merged" / "recipe.yaml").read_text()
    assert text.endswith(RECIPE)
    assert text.startswith("# weights merged by fac_lightning")
    assert f"LinearMerge of {runs / 'base'} and {runs / 'tuned'}" in text.splitlines()[0]


def test_the_run_folder_has_what_a_run_needs_and_no_more(runs):
    WeightMerge(str(runs / "base"), [str(runs / "tuned")], str(runs / "merged")).run()
    files = {str(file.relative_to(runs / "merged")) for file in (runs / "merged").rglob("*") if file.is_file()}
    assert files == {"model.safetensors", "recipe.yaml", "merge.json", "text_tokenizer/tokenizer.json"}


def test_a_merge_is_a_stage_of_a_pipeline(runs, capsys):
    job = {
        "_target_": "fac_lightning.merging.WeightMerge",
        "base": str(runs / "base"),
        "tuned": str(runs / "tuned"),
        "out": str(runs / "merged"),
        "method": {"_target_": "fac_lightning.merging.TaskArithmeticMerge", "alpha": 0.5},
    }
    (runs / "merge.yaml").write_text(yaml.safe_dump({"job": job}))
    pipeline = {"vars": {"run": str(runs / "all")}, "stages": {"merge": {"recipe": "merge.yaml"}}}
    (runs / "all.yaml").write_text(yaml.safe_dump(pipeline))
    assert main(["run", str(runs / "all.yaml")]) == 0
    assert yaml.safe_load((runs / "merged" / "recipe.yaml").read_text())["model"]["_target_"] == "recipe_parts.Model"
    assert yaml.safe_load((runs / "merged" / "job.yaml").read_text())["job"]["method"]["alpha"] == 0.5
    assert main(["run", str(runs / "all.yaml")]) == 0
    assert "done before" in capsys.readouterr().out
    other = ["stages.merge.overrides.job.method=fac_lightning.merging.SlerpMerge"]
    assert main(["run", str(runs / "all.yaml"), *other]) == 0
    assert json.loads((runs / "merged" / "merge.json").read_text())["settings"]["method"]["class"].endswith(
        "SlerpMerge"
    )
    assert (runs / "merged.old-1" / "model.safetensors").is_file()


def test_command_merges(runs, capsys):
    words = ["merge", str(runs / "base"), str(runs / "tuned"), "--out", str(runs / "merged")]
    more = [
        "--alpha",
        "0.25",
        "--alphas",
        "adapter=1",
        "embed.weight=0",
        "out.weight=0",
        "--include",
        "adapter",
        "*.weight",
    ]
    assert main([*words, *more]) != 0  # one of the two names of the tied matrix is not in the file
    shown = capsys.readouterr().err
    assert "matches no tensor that is merged" in shown
    assert main([*words, "--alpha", "0.25", "--alphas", "adapter=1", "--exclude", "adapter.proj.bias"]) == 0
    shown = capsys.readouterr()
    assert f"merged: {runs / 'merged'}" in shown.out
    assert "cosine" in shown.err
    merged, tuned = (load_file(runs / name / "model.safetensors") for name in ("merged", "tuned"))
    assert torch.equal(merged["adapter.proj.weight"], tuned["adapter.proj.weight"])


def test_command_takes_any_method_and_its_options(runs):
    words = ["merge", str(runs / "base"), str(runs / "tuned"), "--out"]
    options = ["--method", "ties", "--option", "density=0.5"]
    assert main([*words, str(runs / "ties"), *options]) == 0
    method = json.loads((runs / "ties" / "merge.json").read_text())["settings"]["method"]
    assert method["density"] == 0.5
    assert main([*words, str(runs / "mine"), "--method", "test_merging.Largest", "--base-prefix", ""]) == 0


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        (["--method", "tise"], 2, "there is no method 'tise'. Did you mean 'ties'?"),
        (["--method", "slerp", "--option", "density=0.5"], 2, "SlerpMerge takes no 'density'"),
        (["--alphas", "adapter"], 2, "--alphas takes PATTERN=ALPHA"),
        (["--alphas", "adaptor=0.5"], 2, "alphas: 'adaptor' matches no tensor that is merged; did you mean adapter"),
        (["--base-prefix", "llm."], 4, "no tensor in common under the prefix 'llm.'"),
        (["--method", "linear", "--alpha", "nan"], 2, "alpha must be a number"),
    ],
)
def test_command_says_what_is_wrong(runs, capsys, more, code, told):
    assert main(["merge", str(runs / "base"), str(runs / "tuned"), "--out", str(runs / "x"), *more]) == code
    shown = capsys.readouterr().err
    assert told in shown
    assert "Traceback" not in shown
    assert not (runs / "x").exists()


def test_command_without_weights(runs, capsys):
    (runs / "tuned" / "model.safetensors").unlink()
    assert main(["merge", str(runs / "base"), str(runs / "tuned"), "--out", str(runs / "x")]) == 3
    assert "has the run ended" in capsys.readouterr().err


def test_methods_and_the_job_are_listed(capsys):
    assert main(["list", "merging"]) == 0
    shown = capsys.readouterr().out
    for method in METHODS:
        assert f"fac_lightning.merging.{type(method).__name__}\n" in shown
    for name in ("WeightMerge", "ema", "greedy_soup", "uniform_soup"):
        assert f"fac_lightning.merging.{name}\n" in shown
