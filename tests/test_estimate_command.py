"""``fac estimate``: every recipe that trains a language model has an estimate; bad input has one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from fac_lightning.cli.app import main
from fac_lightning.cli.estimate_model import at_rate, build_shapes
from fac_lightning.config import UserError, load
from fac_lightning.estimate import Conversation, conversation_batch, trace_line
from fac_lightning.models import SpeechLM

RECIPES = Path(__file__).parents[1] / "recipes"
LLM = (
    "{model_type: qwen3, vocab_size: 2048, hidden_size: 256, intermediate_size: 768, num_hidden_layers: 4, "
    "num_attention_heads: 4, num_key_value_heads: 2, head_dim: 64, tie_word_embeddings: true}"
)
NO_FOLDER = ["model.backbone.name=null", f"model.backbone.config={LLM}"]


def trainings() -> list[Path]:
    """Recipes with a model and a task, but of a codec."""
    files = [file for file in sorted(RECIPES.rglob("*.yaml")) if file.parent.name != "_base"]
    trees = {file: load(file).tree for file in files}
    return [f for f, tree in trees.items() if tree.get("task") and tree.get("model") and f.stem != "codec"]


def estimate(recipe: Path, folder: Path, *words: str) -> dict:
    target = folder / "estimate.json"
    named = (load(recipe).tree["model"].get("backbone") or {}).get("name")  # a folder that an earlier stage leaves
    given = NO_FOLDER if named else []
    assert main(["estimate", str(recipe), *given, *words, "--json", str(target)]) == 0
    return json.loads(target.read_text(encoding="utf-8"))


def test_there_are_trainings():
    names = {file.relative_to(RECIPES).as_posix() for file in trainings()}
    assert {"fun_audio_chat/8b/sft.yaml", "fun_audio_chat/30b_a3b/cocktail_1.yaml", "tiny/sft.yaml"} <= names


def different() -> list[Path]:
    """Of tiny recipes that train the same model on the same lines one."""
    found = {}
    for file in trainings():
        tree = load(file).tree
        what = [tree["model"], tree["task"].get("freeze"), tree["data"].get("capacity")]
        if file.parent.name == "tiny":
            found.setdefault(re.sub(r"runs/[\w/]+", "", str(what)), file)
    return list(found.values())


@pytest.mark.parametrize("recipe", different(), ids=lambda f: f.relative_to(RECIPES).as_posix())
def test_tiny_recipes(recipe, tmp_path, capsys):
    found = estimate(recipe, tmp_path, "--no-rates")
    assert found["fits"]
    assert found["flops"]["line"] > 1e8
    assert 0 < found["memory"]["total"] < 4e9
    assert "fits: " in capsys.readouterr().out


def test_the_8b_recipe_needs_what_its_header_says(tmp_path, capsys):
    found = estimate(RECIPES / "fun_audio_chat/8b/sft.yaml", tmp_path, "--hours", "1000", "--price", "2", "--no-rates")
    kept = sum(found["memory"][name] for name in ("weights", "gradients", "optimizer"))
    assert kept == pytest.approx(52e9, rel=0.01)
    assert found["device"] | {"peak_flops": 0, "bandwidth": 0, "memory": 0, "utilisation": 0} == {
        "name": "h100",
        "count": 4,
        "strategy": "zero2",
        "peak_flops": 0,
        "bandwidth": 0,
        "memory": 0,
        "utilisation": 0,
    }
    assert found["fits"]
    training = found["training"]
    assert training["conversation_hours"] == pytest.approx(1000)
    assert training["cost"] == pytest.approx(2 * training["device_hours"])
    # 8 GPU-s per audio-hour at full context and with checkpointing, at 40 % of the peak
    assert 3 < training["device_hours"] * 3600 / 1000 < 12
    assert "cost " in capsys.readouterr().out


def test_the_30b_recipe_in_little_memory(tmp_path):
    found = estimate(RECIPES / "fun_audio_chat/30b_a3b/cocktail_1.yaml", tmp_path, "--gpu", "h200", "--no-rates")
    kept = sum(found["memory"][name] for name in ("weights", "gradients", "optimizer"))
    assert kept == pytest.approx(91e9, rel=0.01)
    assert sum(slot["total"] for slot in found["parameters"].values()) > 31e9
    active = found["flops"]["by_slot"]["backbone"] / found["line"]["positions"] / 8  # 2 forward, 2 again, 4 backward
    assert active == pytest.approx(2.9e9, rel=0.1)  # of 30.5 billion parameters


def test_rates_side_by_side(tmp_path, capsys):
    found = estimate(RECIPES / "tiny/sft.yaml", tmp_path)["rates"]
    assert list(found) == ["25 Hz without head", "12.5 Hz with head", "5 Hz with head"]
    positions = [cost["positions"] for cost in found.values()]
    assert positions[0] > positions[1] > positions[2]
    assert all(cost["decode_ms_per_200ms"] > 0 for cost in found.values())
    assert "the same" in capsys.readouterr().out


def test_what_does_not_fit_comes_with_ways_out(tmp_path, capsys):
    """Long answers in one long line on a small GPU: shorter lines cannot be had by packing less, but layers can."""
    recipe = tmp_path / "wide.yaml"
    tree = load(RECIPES / "tiny/sft.yaml", NO_FOLDER).tree
    tree["data"]["capacity"] = 65536
    recipe.write_text(yaml.safe_dump({name: value for name, value in tree.items() if name != "base"}))
    found = estimate(recipe, tmp_path, "--gpu", "l4", "--no-rates", "--reply-seconds", "1000", "--user-seconds", "100")
    assert not found["fits"]
    assert 1 <= len(found["remedies"]) <= 3
    assert all(way["total"] <= found["memory"]["room"] for way in found["remedies"])
    assert found["remedies"][0]["words"] == "data.capacity=32768 trainer.accumulate_grad_batches=2"
    assert "does not fit: " in capsys.readouterr().out


def test_a_model_at_another_rate():
    node = load(RECIPES / "tiny/sft.yaml", NO_FOLDER).tree["model"]
    made = build_shapes(at_rate(node, 1, with_head=False))
    assert isinstance(made, SpeechLM)
    assert (made.head.group_size, made.feature_adapter.group_size) == (1, 2)
    assert type(made.head).__name__ == "ParallelHead"
    with pytest.raises(UserError, match="group_size = 10 does not go to 7 / 4 of itself"):
        at_rate({"head": {"group_size": 4}, "feature_adapter": {"group_size": 10}}, 7)


def test_folded_stacks_count_what_all_layers_do():
    node = load(RECIPES / "tiny/sft.yaml", NO_FOLDER).tree["model"]
    node["backbone"]["config"]["num_hidden_layers"] = 12
    node["head"]["num_layers"] = 9
    made = build_shapes(node).train()
    batch = conversation_batch(Conversation(), made.geometry, 25.0, count=2)
    whole, folded = trace_line(made, batch), trace_line(made, batch, fold=True)
    assert folded.flops == whole.flops
    assert folded.traffic == whole.traffic
    assert sum(folded.memory.forward.values()) == pytest.approx(sum(whole.memory.forward.values()), rel=0.01)
    assert folded.memory.activations == pytest.approx(whole.memory.activations, rel=0.02)
    assert folded.memory.backward_total >= whole.memory.backward_total


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["tiny/sft"], 2, "model.backbone.name = runs/quickstart/llm/llm: no folder with a config.json"),
        (["tiny/sft", "model.backbone.name=nobody/has-this"], 2, "fac estimate fetches nothing"),
        (["tiny/pipeline"], 2, "is missing: what is trained; fac estimate is for trainings"),
        (["tiny/codec"], 2, "model is a FSQTokenizer; fac estimate knows speech LLMs"),
        (["tiny/llm", "--gpu", "abacus"], 2, "there is no device 'abacus' in the table"),
        (["tiny/llm", "--gpus", "0"], 2, "--gpus must be at least 1, got 0"),
        (["tiny/llm", "--strategy", "magic"], 2, "strategy 'magic' is not one whose memory is known"),
        (["tiny/llm", "--mfu", "2"], 2, "--mfu is a share of the peak"),
        (["tiny/llm", "--steps", "0"], 2, "--steps must be at least 1, got 0"),
        (["tiny/llm", "--hours", "-1"], 2, "--hours must be above 0, got -1"),
        (["tiny/llm", "--user-seconds", "-1"], 2, "user_seconds must not be negative"),
        (["tiny/llm", "model.hed=1"], 2, "HFBackbone takes no 'hed'"),
        (["tiny/llm", "task.freeze=[nothing]"], 2, "task.freeze: 'nothing' matches no parameter"),
        (["tiny/llm", "trainer.precision=64-true"], 2, "trainer.precision = 64-true is not known here"),
    ],
)
def test_bad_input_has_one_line(words, code, text, capsys):
    assert main(["estimate", *words]) == code
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said
