"""Bad data: one clear message each, the exit code 3, and the rest of the data as usable as before."""

import gzip
import hashlib
import io
import json
import logging
import os
import shutil
import struct
import tarfile
from pathlib import Path

import lightning
import numpy as np
import pytest
import soundfile

from fac_lightning.callbacks import DataCounts
from fac_lightning.cli import main
from fac_lightning.data import (
    BadData,
    DataCheck,
    IntakeLimits,
    PreferenceDataModule,
    PreferencePair,
    PreferenceWriter,
    SpeechChatDataModule,
    TextTokenizerTraining,
    TurnAnswer,
    WrittenAnswer,
    read_cuts,
    read_dialogues,
)
from fac_lightning.data.audio import Span, read_span
from fac_lightning.data.good_dialogues import good_dialogues
from fac_lightning.data.intake import CASES, REFUSED, WARNINGS, check_audio, check_shar_folder
from fac_lightning.data.lhotse_setup import import_lhotse
from fac_lightning.tasks import SpeechSFT
from fac_lightning.testing.dialogues import make_dialogues
from fac_lightning.testing.tiny import tiny_speech_lm
from fac_lightning.types import SpeechGeometry

RATE, GOOD = 16000, 4
GEOMETRY = SpeechGeometry(RATE, 3200, 5, 1, 50, 400)
REPO = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Four good dialogues, a fifth that the cases spoil, and a text tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    make_dialogues(folder / "data", GOOD)
    lines = (folder / "data" / "cuts.jsonl").read_text()
    (folder / "data" / "cuts.jsonl").write_text(lines + json.dumps(bad_record(lines.splitlines()[0])) + "\n")
    soundfile.write(folder / "data" / "audio" / "bad.wav", hum(), RATE, subtype="FLOAT")
    TextTokenizerTraining([str(folder / "data")], 360, str(folder / "tokenizer")).run()
    lhotse = import_lhotse()
    cuts = list(read_cuts(folder / "data"))
    for cut in cuts:
        cut.custom, cut.supervisions = None, cut.supervisions[:1]
    (folder / "shar").mkdir()
    with_audio = {"recording": "flac"}
    lhotse.CutSet.from_cuts(cuts).to_shar(str(folder / "shar"), fields=with_audio, shard_size=3, verbose=False)
    return folder


def bad_record(line):
    """A dialogue of the id ``bad``: one second of ``audio/bad.wav``, answered in text."""
    record = json.loads(line)
    source = {"type": "file", "channels": [0], "source": "audio/bad.wav"}
    record |= {"id": "bad", "start": 0.0, "duration": 1.0, "custom": None}
    record["recording"] = {
        "id": "bad-user", "sources": [source], "sampling_rate": RATE, "num_samples": RATE, "duration": 1.0
    }  # fmt: skip
    for i, turn in enumerate(record["supervisions"]):
        turn |= {"id": f"bad-{i}", "recording_id": "bad-user", "start": 0.0, "duration": 1.0}
    record["supervisions"][1]["custom"] = {"spoken": False}
    return record


def hum(seconds=1.0, rate=RATE, level=0.3):
    return (level * np.sin(np.arange(int(seconds * rate)) / 20)).astype(np.float32)


def data_hash(folder):
    digest = hashlib.blake2b()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


# What spoils the fifth dialogue: functions of the folder.


def wav(samples=None, rate=RATE, **settings):
    def spoil(folder):
        soundfile.write(folder / "audio" / "bad.wav", hum() if samples is None else samples, rate, **settings)

    return spoil


def stored(name, format_, keep=1.0, seconds=1.0, patch=None):
    """Audio of another format, of which a part is kept."""

    def spoil(folder):
        data = io.BytesIO()
        soundfile.write(data, hum(seconds), RATE, format=format_)
        raw = bytearray(data.getvalue())
        if patch is not None:
            patch(raw)
        (folder / "audio" / name).write_bytes(raw[: int(keep * len(raw))])
        record(lambda r: r["recording"]["sources"][0].update(source=f"audio/{name}"))(folder)
        if seconds != 1.0:
            told = {"num_samples": int(seconds * RATE), "duration": seconds}
            record(lambda r: (r.update(duration=seconds), r["recording"].update(told)))(folder)

    return spoil


def raw_file(data):
    return lambda folder: (folder / "audio" / "bad.wav").write_bytes(data)


def record(change):
    """Change the fifth line of the manifest."""

    def spoil(folder):
        lines = (folder / "cuts.jsonl").read_text().splitlines()
        found = json.loads(lines[GOOD])
        change(found)
        (folder / "cuts.jsonl").write_text("\n".join([*lines[:GOOD], json.dumps(found)]) + "\n")

    return spoil


def manifest(change):
    """Change the bytes of the manifest."""

    def spoil(folder):
        (folder / "cuts.jsonl").write_bytes(change((folder / "cuts.jsonl").read_bytes()))

    return spoil


def cut_gzip(folder):
    whole = gzip.compress((folder / "cuts.jsonl").read_bytes())
    (folder / "cuts.jsonl").unlink()
    (folder / "cuts.jsonl.gz").write_bytes(whole[: len(whole) - 40])


def outside(folder):
    (folder.parent / "elsewhere.wav").write_bytes((folder / "audio" / "bad.wav").read_bytes())
    (folder / "audio" / "bad.wav").unlink()
    (folder / "audio" / "bad.wav").symlink_to(folder.parent / "elsewhere.wav")


def claim_frames(raw):
    """All 36 bits of the number of samples in a flac header."""
    (word,) = struct.unpack(">Q", raw[18:26])
    raw[18:26] = struct.pack(">Q", word | (2**36 - 1))


def bomb(folder):
    path = folder / "audio" / "bad.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, format="FLAC") as file:
        for _ in range(72):  # two hours
            file.write(np.zeros(800_000, np.int16))
    told = {"sampling_rate": 8000, "num_samples": 57_600_000, "duration": 7200.0}
    record(lambda r: (r["recording"].update(told), r.update(duration=7200.0)))(folder)
    record(lambda r: r["recording"]["sources"][0].update(source="audio/bad.flac"))(folder)


def header_of(rate, channels):
    return (
        b"RIFF" + struct.pack("<I", 1000) + b"WAVEfmt "
        + struct.pack("<IHHIIHH", 16, 1, channels, rate, 0, 2 * channels, 16)
        + b"data" + struct.pack("<I", 510) + bytes(510)
    )  # fmt: skip


def shar_tar(change):
    """Write the second tar file of the recordings anew, from its members."""

    def spoil(folder):
        path = folder / "recording.000001.tar"
        with tarfile.open(path) as tar:
            members = [(m, tar.extractfile(m).read()) for m in tar]
        with tarfile.open(path, "w") as tar:
            for member, data in change(members):
                tar.addfile(member, io.BytesIO(data))

    return spoil


def as_link(members):
    link = tarfile.TarInfo(members[0][0].name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    return [(link, b""), *members[1:]]


AUDIO = "cuts.jsonl, line 5, cut 'bad', recording, "
CUT = "cuts.jsonl, line 5, cut 'bad', "
# code -> what spoils the data, place, value, rule, advice; words of the command line
CASES_OF = {
    "FAC-A01": (
        lambda f: (f / "audio" / "bad.wav").unlink(),
        "audio/bad.wav",
        "no file of this name",
        "a file that exists",
        "correct the path",
    ),
    "FAC-A02": (raw_file(b""), "audio/bad.wav", "0 bytes", "sound", "make it again"),
    "FAC-A03": (
        raw_file(b"<html><body>404</body></html>"),
        "audio/bad.wav",
        "begins with b'<html>",
        "a format that libsndfile reads",
        "make it again",
    ),
    "FAC-A04": (
        lambda f: os.truncate(f / "audio" / "bad.wav", 30),
        "audio/bad.wav",
        "30 bytes",
        "a whole header",
        "make it again",
    ),
    "FAC-A05": (
        lambda f: os.truncate(f / "audio" / "bad.wav", 32000),
        "audio/bad.wav",
        "32000 bytes",
        "64080, as its header says",
        "make it again",
    ),
    "FAC-A06": (
        stored("bad.flac", "FLAC", 0.5),
        "audio/bad.flac",
        "samples",
        "the 16000 that its header names",
        "make it again",
    ),
    "FAC-A07": (
        stored("bad.ogg", "OGG", 0.5),
        "audio/bad.ogg",
        "without the last page",
        "a stream with its last page",
        "make it again",
    ),
    "FAC-A08": (
        wav(hum(2.0, 8000), 8000),
        "sampling_rate",
        "16000 samples at 8000 Hz",
        "16000 at 16000 Hz",
        "--resample",
    ),
    "FAC-A09": (
        wav(hum(0.95)),
        "num_samples",
        "0.950 s (15200 samples)",
        "1.000 s (16000 samples) give or take 0.04 s",
        "the manifest or the audio",
    ),
    "FAC-A10": (
        wav(np.where(np.arange(RATE) % 7, hum(), np.nan), subtype="FLOAT"),
        "samples",
        "2286 of 16000 that are NaN",
        "finite samples",
        "leave out the recording",
    ),
    "FAC-A11": (
        wav(hum(level=3e-5), subtype="FLOAT"),
        "samples",
        "-93 dBFS",
        "at least -80 dBFS",
        "the right file or channel",
    ),
    "FAC-A12": (wav(np.clip(hum(level=2.0), -1, 1)), "samples", "% at full scale", "at most 1 %", "lower level"),
    "FAC-A13": (
        wav(np.stack([hum(), hum()], 1)),
        "channels",
        "got 2",
        "want 1, as its manifest says",
        "Choose a channel",
    ),
    "FAC-A14": (
        record(lambda r: r["supervisions"][0].update(duration=0.1)),
        "turn 0, field 'duration'",
        "0.1000 s",
        "at least 0.2 s",
        "Leave the turn out",
    ),
    "FAC-A15": (wav(), "duration", "1.00 s", "at most 0.7 s", "--max-seconds", "--max-seconds=0.7"),
    "FAC-A16": (
        stored("bad.flac", "FLAC", patch=claim_frames),
        "samples",
        "68719476735 samples",
        "at most 2147483647",
        "it was not decoded",
    ),
    "FAC-A17": (
        bomb,
        "samples",
        "that become 220 MiB (7200 s)",
        "at most 500 bytes of sound for each",
        "Do not use the file",
    ),
    "FAC-A18": (
        raw_file(header_of(655350, 255)),
        "sample rate",
        "655350 Hz",
        "1000 to 192000 Hz",
        "Do not use the file",
    ),
    "FAC-D01": (
        lambda f: f.rename(f.with_name("dataa")),
        "data",
        "no file or folder of this name",
        "a dialogues folder",
        "near it lie dataa",
    ),
    "FAC-D02": (
        manifest(lambda b: b[:-30]),
        "cuts.jsonl, line 5",
        "got ...",
        "a whole JSON object and a newline",
        "Remove the line",
    ),
    "FAC-D03": (cut_gzip, "cuts.jsonl.gz, line", "end-of-stream", "unpacks to its end", "make it again"),
    "FAC-D04": (
        manifest(lambda b: b + b"\n"),
        "cuts.jsonl, line 6",
        "\\n",
        "one JSON object a line",
        "Remove the line",
    ),
    "FAC-D05": (
        manifest(lambda b: b.replace(b'"bad"', b'"b\xe4d"')),
        "cuts.jsonl, line 5",
        "byte 0xe4 as byte 10 of the line",
        "UTF-8",
        "iconv",
    ),
    "FAC-D06": (
        record(lambda r: r.update(id="dummy-1")),
        "cuts.jsonl, line 5, field 'id'",
        "dummy-1",
        "an id that line 2 does not have",
        "Rename or remove",
    ),
    "FAC-D07": (
        record(lambda r: r.update(duration=float("nan"))),
        CUT + "field 'duration'",
        "nan",
        "seconds above 0",
        "Make the manifest again",
    ),
    "FAC-D08": (
        record(lambda r: r.update(start=0.5)),
        CUT + "fields 'start', 'duration'",
        "0.500 to 1.500 s",
        "inside 0 to 1.000 s",
        "Make the manifest again",
    ),
    "FAC-D09": (
        record(lambda r: r["supervisions"][1].update(text=" ")),
        CUT + "turn 1, field 'text'",
        "got ' '",
        "the words",
        "Correct the turn",
    ),
    "FAC-D10": (
        record(lambda r: r["recording"]["sources"][0].update(type="command", source="cat x")),
        CUT,
        "the command 'cat x'",
        "a source that runs nothing",
        "Store the audio as files",
    ),
    "FAC-D11": (
        shar_tar(lambda m: m[:2]),
        "recording.000001.tar",
        "1 items; the first that lacks is 'bad'",
        "2 items, one for every cut",
        "shard again",
    ),
    "FAC-D12": (
        shar_tar(lambda m: [*m[2:], *m[:2]]),
        "recording.000001.tar",
        "'bad' as item 1",
        "'dummy-3', as in the cuts",
        "shard again",
    ),
    "FAC-D13": (
        shar_tar(as_link),
        "recording.000001.tar, member 'dummy-3.flac'",
        "a link to '/etc/hostname'",
        "regular files",
        "Do not use the shard",
    ),
    "FAC-D14": (
        lambda f: (f / "recording.000001.tar").unlink(),
        "field 'recording'",
        "1 shards: lacks shard 000001",
        "the 2 shards that the cuts have",
        "write what is missing",
    ),
}


def copy_of(world, code, tmp_path):
    """A copy of the data that a case spoils."""
    shar = code in ("FAC-D11", "FAC-D12", "FAC-D13", "FAC-D14")
    folder = tmp_path / "data"
    shutil.copytree(world / ("shar" if shar else "data"), folder)
    return folder


@pytest.mark.parametrize("code", CASES_OF)
def test_bad_data_is_told_in_one_clear_line(world, tmp_path, capsys, code):
    folder = copy_of(world, code, tmp_path)
    spoil, where, value, rule, advice, *words = CASES_OF[code]
    spoil(folder)
    before = data_hash(tmp_path)
    report = tmp_path.parent / f"{tmp_path.name}.json"
    assert main(["data", "check", str(folder), "--json", str(report), *words]) == 3
    shown = capsys.readouterr()
    assert "Traceback" not in shown.out + shown.err
    assert data_hash(tmp_path) == before
    lines = [line.removeprefix("warning: ") for line in shown.out.splitlines() if f"{code}: " in line]
    assert len(lines) == 1, shown.out
    head, _, rest = lines[0].partition(": got ")
    assert head.startswith(f"{code}: ")
    place = head.partition(" in ")[2]
    assert where in place
    got, _, want = rest.partition(", want ")
    assert value.removeprefix("got ") in got
    assert (rule.removeprefix("want ") + ". ") in want or rule.removeprefix("want ") in want.partition(". ")[0]
    assert advice in want
    if code.startswith("FAC-A") and code != "FAC-A14":
        assert CUT in place
        assert "audio/bad." in place
    told = json.loads(report.read_text())
    assert told["counts"] == {code: 1}
    expected = dict.fromkeys(("FAC-A11", "FAC-A12", "FAC-D04"), 5) | {f"FAC-D{i}": 3 for i in range(11, 15)}
    expected["FAC-D01"] = 0
    assert told["good"] == expected.get(code, GOOD if code != "FAC-D03" else told["records"] - 1)
    (problem,) = told["problems"]
    assert problem["code"] == code
    assert problem["severity"] == ("warning" if code in WARNINGS else "error")


def module_of(world, folder, **changes):
    arguments = {
        "text_tokenizer": str(world / "tokenizer"), "geometry": GEOMETRY, "modes": {"S2T": 1.0}, "capacity": 512,
        "look_ahead": 4, "max_bad_share": 0.5, **changes,
    }  # fmt: skip
    return SpeechChatDataModule(str(folder), **arguments)


TRAINED = [code for code in CASES_OF if code not in REFUSED and not code.startswith("FAC-D1")]


@pytest.mark.parametrize("code", TRAINED)
def test_the_rest_trains_on(world, tmp_path, caplog, code):
    folder = copy_of(world, code, tmp_path)
    CASES_OF[code][0](folder)
    limits = IntakeLimits(max_seconds=0.7) if code == "FAC-A15" else None
    module = module_of(world, folder, limits=limits)
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    corpus = module.train_corpus
    lines = [line for line, _ in zip(module.train_dataloader(), range(4), strict=False)]
    seen = {name.split("/")[0] for line in lines for name in line.ids}
    good = {f"dummy-{i}" for i in range(GOOD)}
    if code in WARNINGS:
        assert seen == {*good, "bad"}
        assert corpus.flaws == {code: 1}
        assert f"{code}: " in caplog.text
        return
    if code == "FAC-D04":  # a line of nothing
        good.add("bad")
    assert seen == good
    left_out = [reason for line in lines for _, reason in line.left_out]
    assert corpus.bad or left_out
    assert all(problem.code == code for problem in corpus.bad)
    assert all(f"{code}: " in reason and CUT in reason for reason in left_out)
    if corpus.bad:
        assert corpus.describe()["bad_dialogues"] == 1
        assert f"({code}: 1) are left out" in caplog.text


@pytest.mark.parametrize("code", ["FAC-D03", "FAC-D10"])
def test_some_manifests_are_refused_as_a_whole(world, tmp_path, code):
    folder = copy_of(world, code, tmp_path)
    CASES_OF[code][0](folder)
    path = folder if code == "FAC-D10" else folder / "cuts.jsonl.gz"
    with pytest.raises(BadData, match=code):
        module_of(world, path, max_bad_share=1.0).setup("fit")


def test_a_run_with_bad_audio_trains_to_its_end_and_logs_the_counts(world, tmp_path, caplog):
    folder = copy_of(world, "", tmp_path)
    make_dialogues(tmp_path / "more", 60, seed=3)
    silent = sorted((tmp_path / "more" / "audio").glob("*-user.flac"))
    silent[0].unlink()
    CASES_OF["FAC-A10"][0](folder)
    model = tiny_speech_lm(vocab_size=400, codebook_size=50, sample_rate=RATE, hop_length=640)
    module = SpeechChatDataModule(
        [str(folder), str(tmp_path / "more")],
        str(world / "tokenizer"),
        geometry=model.geometry,
        modes={"S2T": 1.0},
        capacity=512,
        look_ahead=4,
        max_bad_share=0.2,
    )
    trainer = lightning.Trainer(
        max_steps=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[DataCounts()],
    )
    with caplog.at_level(logging.WARNING), pytest.warns(UserWarning, match="Skipping val loop"):
        trainer.fit(SpeechSFT(model), datamodule=module)
    assert trainer.global_step == 6
    assert [problem.code for problem in module.train_corpus.bad] == ["FAC-A01"]
    assert "1 bad ones of 65 dialogues (FAC-A01: 1) are left out" in caplog.text
    assert "left out of training: FAC-A10" in caplog.text
    assert trainer.callback_metrics["data/bad_rows"] >= 1


def test_too_many_bad_dialogues_stop_setup_with_the_first_of_them(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    (folder / "audio" / "bad.wav").unlink()
    message = r"FAC-A00: .*1 bad ones of 5 .*FAC-A01: 1.* at most 1\.00%.*The first: FAC-A01"
    with pytest.raises(BadData, match=message) as told:
        module_of(world, folder, max_bad_share=0.01).setup("fit")
    assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match="max_bad_share must lie between 0 and 1, got 2"):
        module_of(world, folder, max_bad_share=2)


def test_sources_stay_inside_the_data(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    outside(folder)
    with pytest.raises(BadData, match=r"FAC-D10: .*which leads to .*elsewhere\.wav, want a file under .*data"):
        list(read_cuts(folder))
    assert len(list(read_cuts(folder, IntakeLimits(roots=[str(tmp_path)])))) == 5
    record(lambda r: r["recording"]["sources"][0].update(source="../elsewhere.wav"))(folder)
    with pytest.raises(BadData, match=r"FAC-D10: .*got '\.\./elsewhere\.wav'"):
        list(read_dialogues(folder))
    absolute = str(tmp_path / "elsewhere.wav")
    record(lambda r: r["recording"]["sources"][0].update(source=absolute))(folder)
    assert len(list(read_dialogues(folder))) == 5  # absolute paths may lead anywhere ...
    with pytest.raises(BadData, match="FAC-D10"):  # ... unless roots are named
        list(read_cuts(folder, IntakeLimits(roots=[str(tmp_path / "data")])))
    assert main(["data", "check", str(folder), "--roots", str(tmp_path)]) == 0
    assert main(["data", "check", str(folder), "--roots", str(folder)]) == 3


def test_commands_run_only_where_they_are_trusted(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    mark = tmp_path / "ran"
    command = f"touch {mark}; cat {folder / 'audio' / 'bad.wav'}"
    record(lambda r: r["recording"]["sources"][0].update(type="command", source=command))(folder)
    assert main(["data", "check", str(folder)]) == 3
    assert not mark.exists()
    assert main(["data", "check", str(folder), "--trust-commands"]) == 0
    assert mark.exists()


def test_options_of_the_command(world, tmp_path, capsys):
    folder = copy_of(world, "", tmp_path)
    CASES_OF["FAC-A10"][0](folder)
    assert main(["data", "check", str(folder), "--fast"]) == 0  # no sample is looked at
    CASES_OF["FAC-A11"][0](folder)
    assert main(["data", "check", str(folder), "--allow-warnings"]) == 0
    assert main(["data", "check", str(folder / "audio"), str(folder / "cuts.jsonl"), "--allow-warnings"]) == 0
    assert "14 of 14 records are good" in capsys.readouterr().out
    CASES_OF["FAC-A08"][0](folder)
    record(lambda r: r["recording"].update(num_samples=32000, duration=2.0))(folder)
    assert main(["data", "check", str(folder), "--resample"]) == 0
    assert main(["data", "check", str(folder), "--channels", "2", "--max", "1"]) == 3
    assert "more; --json FILE writes all" in capsys.readouterr().out
    report = tmp_path / "all.jsonl"
    assert main(["data", "check", str(folder), "--channels", "2", "--json", str(report)]) == 3
    assert {json.loads(line)["code"] for line in report.read_text().splitlines()} == {"FAC-A08", "FAC-A13"}
    assert main(["data", "check", str(world / "shar"), "--field", "codes"]) == 3
    assert "FAC-D14" in capsys.readouterr().out
    assert main(["data", "check", str(world / "shar"), str(world / "data")]) == 0
    assert main(["data", "check", str(folder), "--workers", "-1"]) == 2
    assert main(["data", "check", str(folder), "--json", str(tmp_path / "no" / "x.json")]) == 2


def test_workers_find_the_same(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    CASES_OF["FAC-A06"][0](folder)
    alone, shared = (DataCheck([str(folder)], num_workers=n, progress=False).run() for n in (0, 1))
    assert [str(problem) for problem in alone.problems] == [str(problem) for problem in shared.problems]
    assert (alone.good, alone.clips, alone.counts) == (shared.good, shared.clips, {"FAC-A06": 1})
    assert alone.hours == pytest.approx(shared.hours)


def test_a_resampled_file_is_read_at_its_own_rate(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    wav(hum(1.0, 8000), 8000)(folder)
    cut = list(read_cuts(folder))[GOOD]
    span = Span(cut.recording, RATE // 2, RATE // 2)
    with pytest.raises(BadData, match="FAC-A08"):
        read_span(span)
    heard = read_span(span, 8000, IntakeLimits(resample=True))
    np.testing.assert_allclose(heard, hum(1.0, 8000)[4000:], atol=1e-4)


def test_audio_a_little_shorter_than_told_is_neither_padded_nor_refused(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    wav(hum(0.97))(folder)
    assert main(["data", "check", str(folder)]) == 0
    module = module_of(world, folder)
    module.setup("fit")
    (clip,) = (t.clip for item in module.train_corpus.items if item.id == "bad" for t in item.turns if t.clip)
    assert clip.num_samples == len(clip.load()) == int(0.97 * RATE)
    (folder / "audio" / "bad.wav").unlink()
    wav(hum(0.98))(folder)  # changed while a run reads it
    (clip,) = (t.clip for item in module.train_corpus.items if item.id == "bad" for t in item.turns if t.clip)
    assert len(clip.load()) == int(0.97 * RATE)


def test_one_channel_of_several_is_chosen_by_the_cut(world, tmp_path):
    folder = copy_of(world, "", tmp_path)
    wav(np.stack([hum(), -0.5 * hum()], 1))(folder)
    record(lambda r: (r["recording"]["sources"][0].update(channels=[0, 1]), r.update(channel=1)))(folder)
    assert main(["data", "check", str(folder)]) == 0
    heard = list(read_dialogues(folder))[GOOD].turns[0].audio
    np.testing.assert_allclose(heard, -0.5 * hum(), atol=1e-4)


def test_lhotses_own_shar_stamps_the_questions_length_on_the_answer(world, tmp_path):
    cuts = import_lhotse().CutSet.from_cuts(list(read_cuts(world / "data"))[:2])
    (tmp_path / "shar").mkdir()
    fields = {"recording": "flac", "target_audio": "flac"}
    cuts.to_shar(str(tmp_path / "shar"), fields=fields, shard_size=2, verbose=False)
    assert list(check_shar_folder(tmp_path / "shar")) == []
    result = DataCheck([str(tmp_path / "shar")], progress=False).run()
    assert result.counts == {"FAC-A09": 2, "FAC-D09": 2}
    places = [problem.where for problem in result.problems if problem.code == "FAC-A09"]
    assert all("target_audio.000000.tar, cut 'dummy-" in place for place in places)


def test_every_code_has_a_case_and_a_line_in_the_documentation():
    page = (REPO / "docs" / "data.md").read_text(encoding="utf-8")
    assert set(CASES_OF) == set(CASES) - {"FAC-A00", "FAC-D15"}
    assert len(CASES_OF) == 32
    assert [code for code in CASES if f"| {code} " not in page] == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1, 2]", "a JSON list, want a JSON object with 'id'"),
        ('{"type": "MonoCut"}', "field 'id': got only 'type'"),
        ('{"id": "x", "type": "Banana"}', "field 'type': got the type 'Banana'"),
        ('{"id": "x", "type": "MonoCut", "start": 0, "duration": 1, "supervisions": [3]}', "fields that cannot be"),
        ('{"id": "x", "type": "MonoCut", "start": 0, "duration": 1, "supervisions": []}', "no turn, want one turn"),
        ("{nonsense}", "'{nonsense}'"),
    ],
)
def test_lines_that_are_no_records(world, tmp_path, capsys, line, told):
    folder = copy_of(world, "", tmp_path)
    manifest(lambda b: line.encode() + b"\n" + b)(folder)
    assert main(["data", "check", str(folder)]) == 3
    out = capsys.readouterr().out
    assert "FAC-D15" in out
    assert told in out
    assert "5 of 6 records are good" in out


def places_in(value, path=()):
    """Where something stands in nested lists and dictionaries."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places_in(one, (*path, key))


@pytest.mark.parametrize("odd", [None, -1, float("nan"), "x", [], {"a": 1}, True, "|x", "gone"], ids=repr)
def test_whatever_stands_in_a_field_is_told_or_taken(world, tmp_path, odd):
    folder = copy_of(world, "", tmp_path)
    lines = (folder / "cuts.jsonl").read_text().splitlines()[:2]
    for path in places_in(json.loads(lines[0])):
        found = json.loads(lines[0])
        holder = found
        for key in path[:-1]:
            holder = holder[key]
        if odd == "gone":
            del holder[path[-1]]
        else:
            holder[path[-1]] = odd
        (folder / "cuts.jsonl").write_text(json.dumps(found) + "\n" + lines[1] + "\n")
        result = DataCheck([str(folder / "cuts.jsonl")], decode=False, progress=False).run()
        assert result.records == 2
        assert result.good == 2 - bool(result.errors)
        if {problem.code for problem in result.errors} & REFUSED:
            with pytest.raises(BadData, match="FAC-D10"):
                good_dialogues(folder, IntakeLimits(), ("user", "assistant"))
        else:
            good = good_dialogues(folder, IntakeLimits(), ("user", "assistant"))
            assert len(good.cuts) + len(good.bad) == 2


FORMATS = [("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", None)]


@pytest.mark.parametrize(("format_", "subtype"), FORMATS)
def test_damaged_sound_is_told_or_taken(tmp_path, capfd, format_, subtype):
    data, rng = io.BytesIO(), np.random.default_rng(0)
    soundfile.write(data, hum(), RATE, format=format_, subtype=subtype)
    whole = np.frombuffer(data.getvalue(), np.uint8)
    seen = set()
    for number in range(60):
        raw = whole[: len(whole) if number % 2 else rng.integers(len(whole))].copy()
        places = rng.integers(0, max(1, min(len(raw), int(rng.choice([64, 400, 10**6])))), 4)
        raw[places[places < len(raw)]] = rng.integers(0, 256)
        (tmp_path / "x").write_bytes(raw.tobytes())
        for source in (raw.tobytes(), tmp_path / "x"):
            report = check_audio(source, "x", IntakeLimits())
            seen |= {problem.code for problem in report.problems} or {"good"}
    assert seen <= {"good", *CASES}
    assert len(seen) > 2
    assert "Exception ignored" not in capfd.readouterr().err  # from libsndfile's callbacks


def test_pairs_of_a_bad_dialogue_are_left_out(world, tmp_path, caplog):
    folder = copy_of(world, "", tmp_path)
    with PreferenceWriter(folder) as writer:
        for name in ("dummy-0", "dummy-1", "bad"):
            answers = TurnAnswer(name, 1), WrittenAnswer("no.")
            writer.write(PreferencePair(f"pair-{name}", name, 1, *answers))
    (folder / "audio" / "bad.wav").unlink()
    module = PreferenceDataModule(
        str(folder), str(world / "tokenizer"), geometry=GEOMETRY, mode="S2T", capacity=512, max_bad_share=0.5
    )
    with caplog.at_level(logging.WARNING):
        module.setup("fit")
    assert [pair.id for _, pair in module.train_corpus.pairs] == ["pair-dummy-0", "pair-dummy-1"]
    assert [problem.code for problem in module.train_corpus.bad] == ["FAC-A01"]
    assert "1 of 3 pairs use bad dialogues and are left out" in caplog.text
    for name in ("dummy-0", "dummy-1"):
        (folder / "audio" / f"{name}-user.flac").unlink()
    module = PreferenceDataModule(
        str(folder), str(world / "tokenizer"), geometry=GEOMETRY, mode="S2T", capacity=512, max_bad_share=1.0
    )
    with pytest.raises(ValueError, match="every pair uses a bad dialogue; the first: FAC-A01"):
        module.setup("fit")
