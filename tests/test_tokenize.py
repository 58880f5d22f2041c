"""``fac tokenize``: codes made once, kept where a training finds them, whatever stops or breaks on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fac_lightning.cli import main
from fac_lightning.cli.tokenize_command import tokenizer_node
from fac_lightning.config import RecipeError, UserError
from fac_lightning.data import (
    CodeStore,
    Dialogue,
    DialogueWriter,
    SpeechChatDataModule,
    TextTokenizerTraining,
    Turn,
    read_cuts,
    read_dialogues,
)
from fac_lightning.detokenizers import ToneDetokenizer
from fac_lightning.tokenizers import S3Tokenizer
from fac_lightning.types import SpeechGeometry
from tokenize_parts import LoggedTokenizer


def write(folder: Path, n: int = 6, samples: int = 1600) -> Path:
    """Dialogues whose every reply is other noise, of other lengths."""
    rng = np.random.default_rng(0)
    with DialogueWriter(folder) as writer:
        for i in range(n):
            question = Turn("user", "Say it.", rng.normal(0, 0.1, 400).astype(np.float32), 8000)
            answers = [
                Turn("assistant", "So.", rng.normal(0, 0.1, samples + 37 * i + j).astype(np.float32), 8000)
                for j in range(2)
            ]
            writer.write(Dialogue(f"d{i}", (question, answers[0], question, answers[1])))
    return folder


def node(log: Path, **changes: object) -> str:
    return json.dumps({"_target_": "tokenize_parts.LoggedTokenizer", "log": str(log), **changes})


def clips(log: Path) -> list[str]:
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


def codes_folder(folder: Path) -> Path:
    (found,) = (folder / "codes").iterdir()
    return found


def test_codes_stand_beside_the_manifest_and_a_training_makes_none_again(tmp_path, capsys):
    folder, log = write(tmp_path / "world"), tmp_path / "log"
    assert main(["tokenize", str(folder), "--tokenizer", node(log, num_codebooks=2)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("clips", "hours", "codes/s", "skipped because done", str(folder / "codes")))
    assert len(set(clips(log))) == len(clips(log)) == 12  # the user's turns are not among them
    TextTokenizerTraining([str(folder)], 300, str(tmp_path / "text")).run()
    tokenizer = LoggedTokenizer(str(tmp_path / "fit_log"), num_codebooks=2)
    module = SpeechChatDataModule(
        train=str(folder / "cuts.jsonl"),
        text_tokenizer=str(tmp_path / "text"),
        tokenizer=tokenizer,
        geometry=SpeechGeometry(8000, 80, 5, 2, 50, 400),
        capacity=512,
    )
    module.setup("fit")
    assert not (tmp_path / "fit_log").exists()
    said = [turn for item in module.train_corpus.items for turn in item.turns if turn.codes is not None]
    spoken = [turn for dialogue in read_dialogues(folder) for turn in dialogue.turns if turn.role == "assistant"]
    for turn, source in zip(said, spoken, strict=True):
        expected = tokenizer.encode(torch.from_numpy(source.audio)[None], torch.tensor([len(source.audio)]))
        assert np.array_equal(turn.codes, expected.codes[0].numpy())


def test_a_second_call_makes_nothing_and_other_names_and_folders_change_nothing(tmp_path, capsys):
    folder, log = write(tmp_path / "world"), tmp_path / "log"
    words = ["--tokenizer", node(log), "--out", str(tmp_path / "kept")]
    assert main(["tokenize", str(folder), *words]) == 0
    assert not (folder / "codes").exists()
    folder.rename(tmp_path / "moved")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.npz")}
    capsys.readouterr()
    assert main(["tokenize", str(tmp_path / "moved" / "cuts.jsonl"), *words]) == 0
    assert "12" in next(line for line in capsys.readouterr().out.splitlines() if "skipped" in line)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "kept").rglob("*.npz")} == before
    assert len(clips(log)) == 12
    assert main(["tokenize", str(tmp_path / "moved"), "--tokenizer", node(log, num_codebooks=3), *words[2:]]) == 0
    assert len(clips(log)) == 24
    assert len(list((tmp_path / "kept" / "codes").iterdir())) == 2


def test_a_killed_run_goes_on_and_nothing_that_was_kept_is_made_again(tmp_path, capsys):
    folder, log = write(tmp_path / "world", 160, 240), tmp_path / "log"
    words = ["tokenize", str(folder), "--tokenizer", node(log, delay=0.5)]
    command = [sys.executable, "-m", "fac_lightning", *words, "--workers", "1"]
    with subprocess.Popen(command, cwd=Path(__file__).parent) as process:
        while not list(folder.glob("codes/*/*.npz")):
            assert process.poll() is None, "it ended before anything was kept"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    workers = {int(line.split()[0]) for line in log.read_text().splitlines()}
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "the workers outlive the command"
        time.sleep(0.02)

    tokenizer = LoggedTokenizer(str(tmp_path / "other_log"))
    kept = len(CodeStore(folder, tokenizer))  # every file that has its name is whole
    assert 0 < kept < 320
    log.unlink()
    capsys.readouterr()
    assert main(words) == 0
    again = clips(log)
    assert len(set(again)) == len(again) == 320 - kept
    table = capsys.readouterr().out.splitlines()
    assert str(kept) in next(line for line in table if "skipped" in line)
    assert str(320 - kept) in next(line for line in table if line.strip(" │┃").startswith("made"))

    CodeStore(folder, tokenizer).complete(read_cuts(folder), progress=False)
    assert not clips(tmp_path / "other_log")


def test_a_draft_that_was_left_behind_is_removed_and_a_fresh_one_is_not(tmp_path):
    folder, log = write(tmp_path / "world"), tmp_path / "log"
    store = CodeStore(folder, LoggedTokenizer(str(log)))
    store.folder.mkdir(parents=True)
    old, young = store.folder / "1-old.part", store.folder / "2-young.part"
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    store.complete(read_cuts(folder), progress=False)
    assert not old.exists()
    assert young.exists()
    assert len(CodeStore(folder, LoggedTokenizer(str(log)))) == 12


def test_bad_audio_is_told_and_counted_and_the_rest_is_made(tmp_path, capsys):
    folder, log = write(tmp_path / "world"), tmp_path / "log"
    sound = {file.name: file.read_bytes() for file in sorted((folder / "audio").glob("*-assistant.flac"))}
    (folder / "audio" / "d1-assistant.flac").unlink()
    (folder / "audio" / "d3-assistant.flac").write_bytes(sound["d3-assistant.flac"][:900])
    (folder / "audio" / "d4-assistant.flac").write_bytes(b"")
    words = ["tokenize", str(folder), "--tokenizer", node(log)]
    for made in (6, 0):
        assert main(words) == 3
        shown = capsys.readouterr()
        table = {line.strip(" │┃").split("  ")[0].strip(): line for line in shown.out.splitlines()}
        assert str(made) in table["made"]
        assert "6" in table["bad audio"]
        told = [line for line in shown.err.splitlines() if "bad audio" in line]
        assert [line.split("dialogue ")[1].split(":")[0] for line in told] == [
            f"'d{i}', turn {turn}" for i in (1, 3, 4) for turn in (1, 3)
        ]
        assert "FAC-A01: missing audio file" in told[0]
        assert "FAC-A02: empty audio file" in told[4]
        listed = [json.loads(line) for line in (codes_folder(folder) / "bad_audio.jsonl").read_text().splitlines()]
        assert [(one["id"], one["turn"]) for one in listed[:2]] == [("d1", 1), ("d1", 3)]
    assert len(clips(log)) == 6
    for name, data in sound.items():
        (folder / "audio" / name).write_bytes(data)
    assert main(words) == 0
    assert not (codes_folder(folder) / "bad_audio.jsonl").exists()
    assert len(clips(log)) == 12


def test_a_manifest_that_runs_commands_is_refused_as_a_whole(tmp_path, capsys):
    folder, log = write(tmp_path / "world"), tmp_path / "log"
    text = (folder / "cuts.jsonl").read_text()
    bad = text.replace('"source": "audio/d4-assistant.flac"', '"source": "cat audio/d4-assistant.flac |"')
    (folder / "cuts.jsonl").write_text(bad)
    assert main(["tokenize", str(folder), "--tokenizer", node(log)]) == 3
    assert "manifests that run commands are refused" in capsys.readouterr().err
    assert not clips(log)


def test_a_part_is_closed_when_it_is_large(tmp_path, monkeypatch):
    monkeypatch.setattr("fac_lightning.data.clip_codes.MAX_BATCH", 2)
    monkeypatch.setattr("fac_lightning.data.codes.PART_BYTES", 400)
    folder = write(tmp_path / "world")
    codes = CodeStore(folder, LoggedTokenizer(str(tmp_path / "log"))).complete(read_cuts(folder), progress=False)
    parts = list(folder.glob("codes/*/*.npz"))
    assert 1 < len(parts) < 6
    found = CodeStore(folder, LoggedTokenizer(str(tmp_path / "log"))).complete(read_cuts(folder), progress=False)
    assert all(np.array_equal(found[turn], codes[turn]) for turn in codes)
    assert len(clips(tmp_path / "log")) == 12


def test_who_speaks_the_codes_has_no_say_in_their_name(tmp_path):
    class Voice(ToneDetokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

    folders = [CodeStore(tmp_path, S3Tokenizer(None, voice)).folder for voice in (None, ToneDetokenizer(), Voice())]
    assert len(set(folders)) == 1


def test_the_tokenizer_is_a_recipes_a_run_folders_a_path_or_a_node(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "vars: {log: a.log, owed: '???'}\n"
        "tokenizer: {_target_: tokenize_parts.LoggedTokenizer, log: '${vars.log}'}\n"
        "data: {_target_: fac_lightning.data.SpeechChatDataModule, train: '???'}\n"
    )
    expected = {"_target_": "tokenize_parts.LoggedTokenizer", "log": "b.log"}
    assert tokenizer_node(str(recipe), ["vars.log=b.log"]) == expected
    assert tokenizer_node("tokenize_parts.LoggedTokenizer", ["tokenizer.log=b.log"]) == expected
    assert tokenizer_node("{_target_: tokenize_parts.LoggedTokenizer, log: a.log}", ["tokenizer.log=b.log"]) == expected
    assert tokenizer_node("tiny/sft", ["tokenizer.griffin_lim_steps=4"])["griffin_lim_steps"] == 4
    run = tmp_path / "run"
    run.mkdir()
    recipe.rename(run / "recipe.yaml")
    with pytest.raises(RecipeError, match=r"--allow tokenize_parts\."):
        tokenizer_node(str(run))
    assert tokenizer_node(str(run), allow=["tokenize_parts."])["log"] == "a.log"


@pytest.mark.parametrize(
    ("given", "overrides", "told"),
    [
        ("tiny/llm", [], "has no 'tokenizer:'"),
        ("fac_lightning.tokenizers.FsqTokenizer", [], "Did you mean 'FSQTokenizer'"),
        ("fac_lightning.tokenizers.FSQTokenizer", ["tokenizer.wieghts=null"], "Did you mean 'weights'"),
        ("{_target_: tokenize_parts.LoggedTokenizer}", [], "'log'|log"),
        ("tiny/nothing", [], "there is no recipe"),
    ],
)
def test_a_wrong_tokenizer_is_told_before_anything_is_read(given, overrides, told):
    with pytest.raises(UserError, match=told):
        tokenizer_node(given, overrides)


def test_what_cannot_be_tokenised_is_one_line_and_a_code(tmp_path, capsys):
    with DialogueWriter(tmp_path / "text") as writer:
        writer.write(Dialogue("d", (Turn("user", "Hello."), Turn("assistant", "Hello."))))
    assert main(["tokenize", str(tmp_path / "text"), "--tokenizer", node(tmp_path / "log")]) == 3
    assert "no turn of the assistant with audio" in capsys.readouterr().err
    assert main(["tokenize", str(tmp_path / "none"), "--tokenizer", node(tmp_path / "log")]) == 3
    assert "does not exist" in capsys.readouterr().err
    assert main(["tokenize", str(tmp_path / "text"), "--tokenizer", node(tmp_path / "log"), "--workers", "-1"]) == 2
    assert "--workers must be at least 0" in capsys.readouterr().err
