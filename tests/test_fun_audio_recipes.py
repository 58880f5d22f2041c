"""Recipes of the published training program: sizes, rates and wiring as published; and the whole of it runs, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fac_lightning.cli.app import main
from fac_lightning.cli.check_command import check_all
from fac_lightning.config import instantiate, load, report
from fac_lightning.data import FunAudioChatImport, SwappedAnswers
from fac_lightning.interop.fun_audio_chat.checkpoint import state_shapes
from fac_lightning.interop.fun_audio_chat.config import part_arguments, recipe_node
from fac_lightning.interop.fun_audio_chat.names import places
from fun_audio_tiny import tiny_config, write_checkpoint
from test_fun_audio_start import dense, small, whisper
from test_fun_audio_tuning import CODES, training_lines

FOLDER = Path(__file__).parents[1] / "recipes" / "fun_audio_chat"
SIZES = ("8b", "30b_a3b")
STAGES = ("start", "pre_align", "cocktail_1", "merge", "cocktail_2", "reference", "dpo")
TRAININGS = ("pre_align", "cocktail_1", "cocktail_2", "dpo")


def tree(size, stage):
    return load(FOLDER / size / f"{stage}.yaml").tree


@pytest.mark.parametrize("size", SIZES)
def test_every_stage_is_there_and_owes_what_only_its_user_knows(size):
    owed = {"data.train", "data.text_tokenizer", "trainer.max_steps"}
    for stage in (*STAGES, "pipeline"):
        recipe = load(FOLDER / size / f"{stage}.yaml")
        problems = [one for one in check_all(recipe) if one.key.removeprefix("job.") not in owed]
        assert not problems, report(recipe.name, problems)
    assert list(tree(size, "pipeline")["stages"]) == list(STAGES)


def linear(rows, columns, bias=False):
    return rows * columns + rows * bias


def encoder_size(dim, width=1280, ffn=5120, layers=32, mels=128):
    attention = 3 * linear(width, width, True) + linear(width, width)
    layer = attention + linear(ffn, width, True) + linear(width, ffn, True) + 4 * width
    convolutions = linear(width, 3 * mels, True) + linear(width, 3 * width, True)
    return convolutions + layers * layer + 2 * width + linear(dim, width, True) + 2 * dim


def attention_size(dim, heads, kv_heads, head_dim=128):
    return 2 * linear(heads * head_dim, dim) + 2 * linear(kv_heads * head_dim, dim) + 2 * head_dim


def head_size(dim, width=1024, ffn=3072, layers=28, group_size=5):  # without the table
    layer = attention_size(width, 16, 8) + 3 * linear(ffn, width) + 2 * width
    return linear(group_size * dim, dim, True) + 2 * linear(width, dim) + layers * layer + width


def expected(size):
    dim, table = (4096, 6565 * 4096) if size == "8b" else (2048, 6565 * 2048)
    if size == "8b":
        layer = attention_size(dim, 32, 8) + 3 * linear(12288, dim) + 2 * dim
        backbone = 36 * layer + dim + 2 * 151936 * dim
    else:
        layer = attention_size(dim, 32, 4) + linear(128, dim) + 128 * 3 * linear(768, dim) + 2 * dim
        backbone = 48 * layer + dim + 2 * 151936 * dim
    return {
        "backbone": backbone,
        "encoder": encoder_size(dim),
        "feature_adapter": linear(dim, dim),
        "code_adapter": table + linear(dim, dim),
        "head": head_size(dim) + table,
    }


def test_the_formulas_give_the_sizes_of_the_release():
    sizes = expected("8b")
    assert sizes["backbone"] == 8_190_735_360
    assert sizes["encoder"] == 640_304_128
    assert sizes["feature_adapter"] + sizes["code_adapter"] == 60_444_672
    assert sizes["head"] == 559_652_864
    assert expected("30b_a3b")["backbone"] == 30_532_122_624  # Qwen3-30B-A3B's own


@pytest.mark.parametrize(("size", "total"), [("8b", 9_424_246_784), ("30b_a3b", 31_657_276_416)])
def test_models_have_as_many_parameters_as_published(size, total):
    nodes = {json.dumps(tree(size, stage)["model"]) for stage in TRAININGS}
    assert len(nodes) == 1  # one model goes through all stages
    with torch.device("meta"):
        model = instantiate(json.loads(nodes.pop()), "model")
    counts = {slot: sum(p.numel() for p in getattr(model, slot).parameters()) for slot in expected(size)}
    assert counts == expected(size)
    assert model.head.table is model.code_adapter.table
    assert sum(p.numel() for p in model.parameters()) == total
    assert model.geometry.samples_per_position == 3200
    released = places(state_shapes(model))
    assert sum(torch.Size(place.shape).numel() for place in released.values()) == total
    dim = model.backbone.dim
    assert released["audio_invert_tower.pre_matching.weight"].shape == (5 * dim, dim)
    assert released["audio_tower.embed_tokens.weight"].shape == (6565, dim)
    if size == "30b_a3b":
        experts = "language_model.model.layers.47.mlp.experts.127"
        assert released[f"{experts}.down_proj.weight"].shape == (dim, 768)


@pytest.mark.parametrize("size", SIZES)
def test_rates_are_those_of_the_report(size):
    rates = {"cocktail_1": (1e-4, 1e-5), "cocktail_2": (1e-5, 1e-6)}
    if size == "8b":
        rates["sft"] = (1e-5, 1e-6)
    for stage, (lr, min_lr) in rates.items():
        task = tree(size, stage)["task"]
        assert (task["lr"], task["min_lr"]) == (lr, min_lr)
        assert not task.get("freeze")
    assert tree(size, "pre_align")["task"]["freeze"] == ["backbone"]
    assert tree(size, "merge")["job"]["method"]["alpha"] == 0.5
    for stage in TRAININGS:
        one = tree(size, stage)
        assert (one["data"]["capacity"], one["data"]["reply"]["lead_in_codes"]) == (2048, 10)
        assert (one["trainer"]["gradient_clip_val"], one["trainer"]["precision"]) == (1.0, "bf16-mixed")
        assert one["task"]["betas"] == [0.9, 0.999]


@pytest.mark.parametrize("size", SIZES)
def test_each_stage_begins_where_the_one_before_ended(size):
    start, merge, reference = (tree(size, stage)["job"] for stage in ("start", "merge", "reference"))
    ends = {stage: tree(size, stage)["trainer"]["default_root_dir"] for stage in TRAININGS}
    begins = {stage: tree(size, stage)["init_from"] for stage in TRAININGS}
    assert begins["pre_align"] == merge["base"] == start["out"]
    assert begins["cocktail_1"] == ends["pre_align"]
    assert merge["tuned"] == ends["cocktail_1"]
    assert begins["cocktail_2"] == merge["out"]
    assert begins["dpo"] == reference["run"] == ends["cocktail_2"]
    assert tree(size, "dpo")["data"]["reference"] == reference["out"]
    shared = [tree(size, stage)["data"] for stage in ("reference", "dpo")]
    layout = ("mode", "reply", "capacity", "text_tokenizer")
    assert [shared[0][name] for name in layout] == [shared[1][name] for name in layout]


def test_the_program_runs_whole_on_small_parts(tmp_path, capsys):
    config = tiny_config(group_size=5)
    released = write_checkpoint(tmp_path / "released", config)
    assert main(["import", str(released), "--out", str(tmp_path / "import")]) == 0
    FunAudioChatImport(str(training_lines(tmp_path / "json")), str(tmp_path / "dialogues"), codebook_size=CODES).run()
    SwappedAnswers(str(tmp_path / "dialogues"), str(tmp_path / "pairs"), task="robustness").run()
    for name, make in (("llm", dense), ("whisper", whisper), ("small", small)):
        make().save_pretrained(tmp_path / name)
    small_model = without_targets(recipe_node(part_arguments(config)))
    words = [
        "run",
        str(FOLDER / "8b" / "pipeline.yaml"),
        f"vars.run={tmp_path / 'run'}",
        f"vars.llm={tmp_path / 'llm'}",
    ]
    words += [f"vars.{name}={tmp_path / name}" for name in ("dialogues", "pairs")]
    words += [f"vars.text_tokenizer={tmp_path / 'import' / 'text_tokenizer'}"]
    words += ["vars.devices=1", "vars.strategy=auto", "vars.dtype=float32"]
    words += [f"stages.start.overrides.vars.encoder={tmp_path / 'whisper'}"]
    words += [f"stages.start.overrides.vars.head={tmp_path / 'small'}"]
    for stage in TRAININGS:
        over = f"stages.{stage}.overrides"
        words += [f"vars.steps.{stage}=1", f"{over}.model={json.dumps(small_model)}", f"{over}.tokenizer=null"]
        words += [f"{over}.trainer.accelerator=cpu", f"{over}.trainer.accumulate_grad_batches=1"]
        words += [f"{over}.trainer.enable_progress_bar=false", f"{over}.data.num_workers=0"]
    assert main(words) == 0, capsys.readouterr()
    assert main(["export", str(tmp_path / "run" / "dpo"), "--out", str(tmp_path / "out"), "--like", str(released)]) == 0
    tensors = json.loads((tmp_path / "run" / "merged" / "merge.json").read_text())["tensors"]
    merged = {one["name"] for one in tensors if one["rule"] == "merged"}
    assert merged == {one["name"] for one in tensors if one["name"].startswith("backbone.")}


def without_targets(node):
    return {k: without_targets(v) if isinstance(v, dict) else v for k, v in node.items() if k != "_target_"}
