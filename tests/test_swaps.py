"""A part named on the command line brings its sizes: the quickstart trains and talks with another codec and LLM."""

import logging

import pytest
import soundfile
import torch

from fac_lightning.cli import load_run, main
from fac_lightning.cli.run_command import plan
from fac_lightning.cli.sizes import with_sizes
from fac_lightning.config import UserError, load
from fac_lightning.testing import make_dialogues

CODEC = "{sampling_rate: 24000, num_filters: 4, hidden_size: 8, codebook_size: 64, codebook_dim: 8, "
CODEC += "upsampling_ratios: [8, 5, 4, 2], num_lstm_layers: 1, target_bandwidths: [1.5, 3.0]}"
ENCODEC = ["tokenizer=fac_lightning.tokenizers.EncodecTokenizer", "tokenizer.num_codebooks=2"]
RANDOM = ["tokenizer.pretrained=false", f"tokenizer.config={CODEC}"]  # a test has neither hub nor time
LLAMA = "model.config.model_type=llama"

RECIPE = """
vars: {dim: 16, group_size: 5, codebook_size: 32, num_codebooks: 1}
model:
  _target_: fac_lightning.models.SpeechLM
  backbone: {_target_: fac_lightning.testing.tiny_backbone, dim: 16}
  encoder: {_target_: fac_lightning.testing.FrameEncoder, dim: 8}
  feature_adapter: {_target_: fac_lightning.adapters.MeanGrouping, in_dim: 8, group_size: 5, dim: "${vars.dim}"}
  code_adapter:
    _target_: fac_lightning.adapters.MeanCodeGrouping
    codebook_size: ${vars.codebook_size}
    num_codebooks: ${vars.num_codebooks}
    group_size: ${vars.group_size}
    dim: ${vars.dim}
  fusion: {_target_: fac_lightning.adapters.SumFusion}
  head:
    _target_: fac_lightning.heads.ParallelHead
    codebook_size: ${vars.codebook_size}
    num_codebooks: ${vars.num_codebooks}
    group_size: ${vars.group_size}
    dim: ${vars.dim}
tokenizer: {_target_: test_agreement.Silence}
"""


@pytest.fixture
def sized(tmp_path):
    """Gives the sizes that a recipe has after its words."""

    def sizes(*words, recipe=RECIPE):
        (tmp_path / "mine.yaml").write_text(recipe)
        tree = with_sizes(load(tmp_path / "mine.yaml", words)).tree
        head, adapter = tree["model"]["head"], tree["model"]["feature_adapter"]
        codes = head["codebook_size"], head["num_codebooks"], head["group_size"]
        return *codes, head["dim"], adapter["in_dim"], adapter["group_size"]

    return sizes


AS_WRITTEN = (32, 1, 5, 16, 8, 5)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        (["tokenizer.codebook_size=64", "tokenizer.num_codebooks=4"], (64, 4, 5, 16, 8, 5)),
        (["tokenizer.frame_rate=75"], (32, 1, 15, 16, 8, 5)),
        (["tokenizer.frame_rate=12.5", "tokenizer.codebook_size=9"], (9, 1, 3, 16, 8, 6)),  # 4.17 of 25 and 12.5 Hz
        (["model.backbone.dim=32"], (32, 1, 5, 32, 8, 5)),
        (["model.encoder.dim=12"], (32, 1, 5, 16, 12, 5)),
        (["model.encoder.hop_length=20"], (32, 1, 5, 16, 8, 10)),  # the model speaks as before
        (["model.backbone.dim=32", "tokenizer.num_codebooks=2"], (32, 2, 5, 32, 8, 5)),
        (["seed=1"], AS_WRITTEN),
    ],
)
def test_sizes_follow_a_part_that_a_word_names(sized, words, sizes, caplog):
    with caplog.at_level(logging.INFO, "fac_lightning"):
        assert sized(*words) == sizes
    told = [line for line in caplog.messages if line.startswith("to go with ")]
    assert bool(told) == (sizes != AS_WRITTEN)


@pytest.mark.parametrize(
    "words",
    [
        ["tokenizer.codebook_size=64", "vars.codebook_size=32"],
        ["tokenizer.frame_rate=75", "vars.group_size=5"],
        ["tokenizer.frame_rate=75", "model.encoder.hop_length=20"],  # how many positions a second are wanted?
        ["tokenizer.frame_rate=75", "model.rate_tolerance=1"],
    ],
)
def test_what_words_fix_and_what_is_not_clear_stays(sized, words):
    codes = sized(*words)
    assert (codes[0], codes[2], codes[5]) == (32, 5, 5)


def test_a_mistake_in_the_file_is_not_covered_up(sized):
    assert sized(recipe=RECIPE.replace("codebook_size: 32", "codebook_size: 31"))[0] == 31
    without = RECIPE.replace("num_codebooks: 1}", "books: 1}").replace("vars.num_codebooks", "vars.books")
    assert sized("tokenizer.num_codebooks=2", recipe=without)[1] == 1


def test_only_the_width_of_a_large_llm_is_asked_for(tmp_path):
    config = (
        "{model_type: qwen3, hidden_size: 4096, num_hidden_layers: 36, vocab_size: 151936, intermediate_size: 12288}"
    )
    node = "{_target_: fac_lightning.backbones.HFBackbone, config: CONFIG}".replace("CONFIG", config)
    file = tmp_path / "mine.yaml"
    file.write_text(RECIPE.replace("dim: 16, group", "dim: 8, group"))
    recipe = with_sizes(load(file, [f"model.backbone={node}"]))  # 8 billion parameters, none of them made
    assert recipe.tree["model"]["head"]["dim"] == 4096


def test_words_of_a_pipeline_go_to_the_stages_that_take_them():
    words = [*ENCODEC, LLAMA, "trainer.max_steps=3", "~data.val", "model.head=fac_lightning.heads.ParallelHead"]
    stages = {stage.name: stage for stage in plan(load("tiny/quickstart", words), lambda recipe: None)}
    targets = {name: (stage.recipe.get("tokenizer") or {}).get("_target_") for name, stage in stages.items()}
    assert [name for name, target in targets.items() if target] == ["align", "sft"]
    assert set(targets.values()) == {None, "fac_lightning.tokenizers.EncodecTokenizer"}
    assert stages["llm"].recipe["model"]["config"]["model_type"] == "llama"
    assert [name for name in stages if "trainer.max_steps=3" in stages[name].words] == ["llm", "align", "sft"]
    assert "trainer" not in stages["world"].recipe
    assert "val" not in stages["sft"].recipe["data"]
    assert stages["sft"].recipe["model"]["head"]["_target_"] == "fac_lightning.heads.ParallelHead"
    with pytest.raises(UserError, match=r"no stage takes 'trainer.max_step=3'; stages are world, text_tokenizer, llm"):
        plan(load("tiny/quickstart", ["trainer.max_step=3"]), lambda recipe: None)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart on a tiny world, its words as a user would type them."""
    run = tmp_path_factory.mktemp("swaps")
    make_dialogues(run / "world" / "text", 12, spoken=False)
    make_dialogues(run / "world" / "train", 4)
    make_dialogues(run / "world" / "eval_unseen_wording", 1, seed=1)
    short = ["~stages.world", "--until", "sft", f"vars.run={run}", "trainer.max_steps=3"]
    assert main(["run", "tiny/quickstart", *ENCODEC, LLAMA, *RANDOM, *short]) == 0
    return run


def test_the_quickstart_trains_and_talks_with_another_tokenizer_and_another_llm(quickstart, capsys):
    heard = next((quickstart / "world" / "train" / "audio").glob("*-user.flac"))
    words = ["chat", str(quickstart / "sft"), "--wav", str(heard), "--out", str(quickstart / "answer.wav")]
    assert main([*words, "--max-positions", "6"]) == 0
    assert capsys.readouterr().out.strip()
    audio, rate = soundfile.read(quickstart / "answer.wav")
    assert rate == 24000
    assert len(audio) >= 320
    run = load_run(quickstart / "sft")
    assert type(run.model.backbone.model).__name__ == "LlamaModel"
    head = run.model.head
    assert (head.codebook_size, head.num_codebooks, head.group_size) == (64, 2, 15)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
