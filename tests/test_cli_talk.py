"""The whole way through the command line: a recipe of real parts is trained, shown, swapped, talked to, measured."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fac_lightning.cli import load_run, main
from fac_lightning.data import TextTokenizerTraining
from fac_lightning.replies import FrameEnd, GroupEnd
from fac_lightning.testing import make_dialogues

RECIPE = """
seed: 1
vars: {world: WORLD, run: RUN, dim: 32, group_size: 5, codebook_size: 6561, num_codebooks: 1, encoder_dim: 16}
model:
  _target_: fac_lightning.models.SpeechLM
  backbone:
    _target_: fac_lightning.backbones.HFBackbone
    pretrained: false
    config: {model_type: qwen3, vocab_size: 400, hidden_size: "${vars.dim}", intermediate_size: 64, head_dim: 16,
      num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, tie_word_embeddings: true}
  encoder: {_target_: fac_lightning.encoders.MelEncoder, dim: "${vars.encoder_dim}", num_layers: 1}
  feature_adapter:
    _target_: fac_lightning.adapters.ConcatGrouping
    in_dim: ${vars.encoder_dim}
    group_size: 10
    dim: ${vars.dim}
  code_adapter:
    _target_: fac_lightning.adapters.ConcatCodeGrouping
    codebook_size: ${vars.codebook_size}
    num_codebooks: ${vars.num_codebooks}
    group_size: ${vars.group_size}
    dim: ${vars.dim}
    embed_dim: 8
  fusion: {_target_: fac_lightning.adapters.SumFusion}
  head:
    _target_: fac_lightning.heads.RefinedHead
    dim: ${vars.dim}
    codebook_size: ${vars.codebook_size}
    num_codebooks: ${vars.num_codebooks}
    group_size: ${vars.group_size}
    width: 16
    num_layers: 1
    num_heads: 2
tokenizer: {_target_: fac_lightning.tokenizers.FSQTokenizer, weights: null, griffin_lim_steps: 1, dim: 16,
  encoder_dim: 16, mel_dim: 16, num_blocks: 1, mel_blocks: 1}
task: {_target_: fac_lightning.tasks.SpeechSFT, lr: 5e-3, warmup_steps: 1}
data:
  _target_: fac_lightning.data.SpeechChatDataModule
  train: ${vars.world}/train
  val: ${vars.world}/val
  text_tokenizer: ${vars.world}/tokenizer
  modes: {S2M: 1.0}
  capacity: 128
  lead_in: 1
trainer: {max_steps: 20, accelerator: cpu, default_root_dir: "${vars.run}", log_every_n_steps: 1,
  num_sanity_val_steps: 0, limit_val_batches: 0, enable_progress_bar: false}
"""

ENCODEC = [
    "tokenizer=fac_lightning.tokenizers.EncodecTokenizer",
    "tokenizer.pretrained=false",
    "tokenizer.config={sampling_rate: 24000, num_filters: 4, hidden_size: 8, codebook_size: 64, codebook_dim: 8, "
    "upsampling_ratios: [8, 5, 4, 2], num_lstm_layers: 1, target_bandwidths: [1.5, 3.0]}",
    "tokenizer.num_codebooks=2",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talk")
    make_dialogues(folder / "train", 24)
    make_dialogues(folder / "val", 2, seed=1)
    TextTokenizerTraining([str(folder / "train")], 360, str(folder / "tokenizer")).run()
    (folder / "recipe.yaml").write_text(RECIPE.replace("WORLD", str(folder)).replace("RUN", str(folder / "run")))
    return folder


@pytest.fixture(scope="module")
def run(world) -> Path:
    assert main(["fit", str(world / "recipe.yaml")]) == 0
    return world / "run"


def losses(run: Path) -> list[float]:
    with (run / "logs" / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


def test_run_folder_is_complete(run):
    assert (run / "text_tokenizer" / "tokenizer.json").is_file()
    loaded = load_run(run)
    assert loaded.data["lead_in"] == 1
    assert loaded.tokenizer.codebook_size == 6561
    seen = losses(run)
    assert np.mean(seen[-3:]) < np.mean(seen[:3])


@pytest.mark.parametrize(
    "words",
    [
        ENCODEC,
        ["model.encoder=fac_lightning.encoders.WhisperEncoder", "model.encoder.pretrained=false",
         "model.encoder.config={d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 32}"],
        ["model.feature_adapter=fac_lightning.adapters.MeanGrouping"],
        ["model.code_adapter=fac_lightning.adapters.MeanCodeGrouping"],
        ["model.fusion=fac_lightning.adapters.MeanFusion"],
        ["model.head=fac_lightning.heads.ParallelHead"],
        ["model.backbone.config.model_type=llama"],
        ["model.feature_adapter=test_third_party.MaxPooling"],
    ],
    ids=["tokenizer", "encoder", "feature_adapter", "code_adapter", "fusion", "head", "backbone", "third_party"],
)  # fmt: skip
def test_every_slot_swaps_from_the_command_line(world, tmp_path, words, capsys):
    assert main(["fit", str(world / "recipe.yaml"), f"vars.run={tmp_path / 'run'}", *words]) == 0
    seen = losses(tmp_path / "run")
    assert len(seen) == 20
    assert np.mean(seen[-3:]) < np.mean(seen[:3])
    capsys.readouterr()
    allow = ["--allow", "test_third_party."]
    assert main(["chat", str(tmp_path / "run"), "--text", "What follows red?", "--max-positions", "4", *allow]) == 0
    assert capsys.readouterr().out.strip()


def test_chat_answers_a_file_with_a_file(run, world, tmp_path, capsys):
    question, answer = tmp_path / "question.wav", tmp_path / "answer.wav"
    soundfile.write(question, 0.1 * np.random.default_rng(0).standard_normal((22050, 2)), 44100)
    words = ["--wav", str(question), "--out", str(answer), "--max-positions", "8", "--temperature", "1", "--seed", "3"]
    assert main(["chat", str(run), *words]) == 0
    shown = capsys.readouterr().out
    assert f"s of speech: {answer})" in shown
    audio, rate = soundfile.read(answer)
    assert rate == 16000
    assert len(audio) > 0


def test_chat_converses_without_a_microphone(run, tmp_path, monkeypatch, capsys):
    question = tmp_path / "question.flac"
    soundfile.write(question, np.zeros(8000, dtype=np.float32), 16000)
    typed = f"What follows red?\n{question}\nnothing.wav\n/reset\nWhat follows blue?\n/quit\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert main(["chat", str(run), "--max-positions", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("S2M. Type a line")
    assert "nothing.wav" in shown
    assert "(a new conversation)" in shown


def test_chat_shows_what_a_chain_wrote(run, tmp_path, capsys):
    question = tmp_path / "question.wav"
    soundfile.write(question, np.zeros(8000, dtype=np.float32), 16000)
    assert main(["chat", str(run), "--wav", str(question), "--mode", "STC", "--max-positions", "6"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("(heard: ")
    assert "\n(wrote: " in shown
    assert main(["chat", str(run), "--wav", str(question), "--mode", "STS"]) == 3
    assert "unknown mode 'STS'; choose one of S2M, S2T, T2M, T2T, STC, SAC, SUC" in capsys.readouterr().err


def test_chat_refuses_what_is_no_audio(run, tmp_path, capsys):
    path = tmp_path / "noise.wav"
    path.write_bytes(b"not audio")
    assert main(["chat", str(run), "--wav", str(path)]) == 3
    assert f"{path} cannot be read as audio" in capsys.readouterr().err


def test_a_run_remembers_its_reply_rule(run, tmp_path, capsys):
    assert load_run(run).reply == FrameEnd(1)
    other = shutil.copytree(run, tmp_path / "run")
    recipe = (other / "recipe.yaml").read_text()
    assert "\n  lead_in: 1\n" in recipe
    for target, options in (("GroupEnd", "lead_in_codes: 3"), ("FrameEnd", "lead_in: 2"), ("ReplyRules", "lead_in: 2")):
        node = f"reply: {{_target_: fac_lightning.replies.{target}, {options}}}"
        (other / "recipe.yaml").write_text(recipe.replace("\n  lead_in: 1\n", f"\n  {node}\n"))
        capsys.readouterr()
        words = ["chat", str(other), "--text", "What?", "--out", str(tmp_path / "out.wav"), "--max-positions", "4"]
        code, said = main(words), capsys.readouterr()
        if target == "GroupEnd":
            assert load_run(other).reply == GroupEnd(3)
            assert code == 3
            assert "RefinedHead cannot say bos" in said.err
        else:
            assert code == (0 if target == "FrameEnd" else 2)
            assert (target == "FrameEnd") or "data.reply._target_" in said.err


def test_show_tells_rates_and_shapes(world, capsys):
    assert main(["show", str(world / "recipe.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "user speech:  16000 Hz -> 50 frames/s -> /10 -> 5 positions/s" in shown
    assert "model speech: 16000 Hz -> 25 frames/s (1 x 6561 codes) -> /5 -> 5 positions/s" in shown
    assert "speech_labels" in shown
    assert "RefinedHead" in shown
    assert main(["show", str(world / "recipe.yaml"), "data.train=/nowhere"]) == 0
    assert "the data cannot be read yet" in capsys.readouterr().out


def test_eval_prints_a_table(run, capsys):
    assert main(["eval", str(run), "max_positions=4", "batch_size=2", "mode=S2T"]) == 0
    assert "text_exact" in capsys.readouterr().out
    assert main(["eval", str(run), "max_positions=4", "mode=STC"]) == 0
    assert "draft_exact" in capsys.readouterr().out
    assert main(["eval", str(run), "batchsize=2"]) == 2
    assert "takes no 'batchsize'. Did you mean 'batch_size'?" in capsys.readouterr().err
