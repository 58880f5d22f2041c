"""Other people's data: each format in its true layout comes out turn by turn, goes on where it stopped, and trains."""

import json
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch

from fac_lightning.cli import main
from fac_lightning.data import IMPORT_FORMATS, SpeechChatDataModule, guess_format, read_dialogues
from fac_lightning.tasks import SpeechSFT
from fac_lightning.testing import tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes
from foreign_data import CASES, RATE


class StepTokenizer(SpeechTokenizer):
    """Codes are the number of the frame."""

    sample_rate, hop_length, codebook_size = 16000, 640, 64

    def __init__(self, name, books):
        super().__init__()
        self.codes_name, self.num_codebooks = name, books

    def encode(self, audio, lengths=None):
        frames = torch.arange(-(-audio.shape[1] // 640)) % 64
        return SpeechCodes(frames[None, :, None].expand(len(audio), -1, self.num_codebooks), -(-lengths // 640))

    def decode(self, codes, lengths=None):
        raise NotImplementedError


def job_of(name, sample, out, **more):
    return IMPORT_FORMATS[name].job(source=sample.source, out=str(out), **{**sample.arguments, **more})


@pytest.fixture(params=CASES, ids=[f"{name}-{writer.__name__}" for name, writer in CASES])
def case(request, tmp_path):
    name, writer = request.param
    (tmp_path / "data").mkdir()
    return name, writer(tmp_path / "data"), tmp_path


def same_turn(turn, due):
    assert (turn.role, turn.text) == (due.role, due.text)
    assert (turn.audio is not None) == (due.sound is not None)
    if due.sound is not None:
        np.testing.assert_array_equal(turn.audio, due.sound)
    assert (turn.codes.codes.tolist() if turn.codes is not None else None) == due.codes
    for key, value in due.custom.items():
        assert turn.custom[key] == pytest.approx(value) if isinstance(value, float) else turn.custom[key] == value


def test_what_is_in_the_source_comes_out(case):
    name, sample, folder = case
    summary = job_of(name, sample, folder / "out").run()
    found = {dialogue.id: dialogue for dialogue in read_dialogues(folder / "out")}
    assert found.keys() == sample.dialogues.keys()
    for key, turns in sample.dialogues.items():
        assert len(found[key].turns) == len(turns)
        for turn, due in zip(found[key].turns, turns, strict=True):
            same_turn(turn, due)
    first = found[next(iter(sample.dialogues))]
    assert {key: first.custom.get(key) for key in sample.custom} == sample.custom
    assert (summary["dialogues"], summary["turns"]) == (len(found), sum(map(len, sample.dialogues.values())))
    assert json.loads((folder / "out" / "summary.json").read_text()) == summary
    assert not (folder / "out" / "bad.jsonl").exists()


def test_a_stopped_import_repeats_and_loses_nothing(case):
    name, sample, folder = case
    job_of(name, sample, folder / "whole").run()
    done = (folder / "whole" / "cuts.jsonl").read_bytes()
    job_of(name, sample, folder / "out").run()
    manifest = folder / "out" / "cuts.jsonl"
    cut = len(done.splitlines(keepends=True)[0]) + 40
    manifest.write_bytes(done[:cut])  # one dialogue and a part of the next
    again = job_of(name, sample, folder / "out").run()
    assert manifest.read_bytes() == done
    assert again.get("new", len(sample.dialogues) - 1) == len(sample.dialogues) - 1
    once_more = job_of(name, sample, folder / "out").run()
    assert manifest.read_bytes() == done
    assert once_more.get("new", 0) == 0


def test_the_format_is_seen_by_looking(case):
    name, sample, _ = case
    found, why = guess_format(Path(sample.source), sample.source)
    assert found == name
    assert why


def test_one_trains_on_it(case):
    name, sample, folder = case
    job_of(name, sample, folder / "out").run()
    texts = [turn.text for turns in sample.dialogues.values() for turn in turns]
    train_text_tokenizer([*texts, "Be brief. You are."], 360, folder / "tokenizer")
    model = tiny_speech_lm(
        vocab_size=400, codebook_size=64, num_codebooks=sample.books, sample_rate=RATE, hop_length=640
    )
    module = SpeechChatDataModule(
        train=str(folder / "out"),
        val=str(folder / "out"),
        text_tokenizer=str(folder / "tokenizer"),
        tokenizer=StepTokenizer(sample.codes_name, sample.books),
        geometry=model.geometry,
        modes=sample.modes,
        capacity=900,
        look_ahead=2,
    )
    trainer = lightning.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=1,
    )
    task = SpeechSFT(model, lr=1e-2, warmup_steps=1)
    trainer.fit(task, datamodule=module)
    assert trainer.global_step == 3
    assert trainer.callback_metrics
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert sum(module.describe()["train"]["rows"].values()) > 0


@pytest.mark.parametrize(("name", "writer"), CASES, ids=[f"{name}-{writer.__name__}" for name, writer in CASES])
def test_the_command_imports_it(name, writer, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    sample = writer(tmp_path / "data")
    words = [f"--set={key}={value}" for key, value in sample.arguments.items()]
    assert main(["data", "import", "auto", sample.source, "--out", str(tmp_path / "out"), *words]) == 0
    told = capsys.readouterr()
    assert f"{sample.source}: {name}, for " in told.err
    assert "dialogues" in told.out
    assert len(list(read_dialogues(tmp_path / "out", audio=False))) == len(sample.dialogues)
