"""Real human speech: the whole way from recordings to answers on spoken digits, with a speaker never trained on."""

import io
import zipfile
from pathlib import Path

import pytest
import soundfile

from fac_lightning.cli.eval_command import evaluate
from fac_lightning.cli.fit import fit
from fac_lightning.data import Dialogue, DialogueWriter, TextTokenizerTraining, Turn

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
RECORDINGS = DATA / "fsdd" / "recordings.zip"
ENCODER = DATA / "whisper_tiny_en_encoder"
HELD_OUT = "theo"
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def write_digits(folder, clips):
    with zipfile.ZipFile(RECORDINGS) as archive, DialogueWriter(folder) as writer:
        for name in clips:
            audio, rate = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
            stem = Path(name).stem
            heard = Turn("user", "", audio, rate, {"voice": stem.split("_")[1]})
            writer.write(Dialogue(stem, (heard, Turn("assistant", WORDS[int(stem[0])]))))


@pytest.mark.skipif(not RECORDINGS.exists(), reason=f"the spoken digits are not at {RECORDINGS}")
@pytest.mark.skipif(not ENCODER.exists(), reason=f"the Whisper encoder's weights are not at {ENCODER}")
def test_digits_of_an_unheard_speaker(tmp_path, record_property, capsys):
    with zipfile.ZipFile(RECORDINGS) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".wav"))
    spoken = {n: (Path(n).stem.split("_")[1], int(Path(n).stem.split("_")[2])) for n in names}
    write_digits(tmp_path / "train", [n for n, (who, take) in spoken.items() if who != HELD_OUT and 5 <= take < 13])
    write_digits(tmp_path / "val", [n for n, (who, take) in spoken.items() if who == HELD_OUT and take < 5])
    TextTokenizerTraining([str(tmp_path / "train")], 320, str(tmp_path / "tok")).run()

    result = fit(
        ROOT / "recipes" / "tiny" / "digits.yaml",
        [
            f"vars.train={tmp_path / 'train'}",
            f"vars.val={tmp_path / 'val'}",
            f"vars.text_tokenizer={tmp_path / 'tok'}",
            f"vars.encoder={ENCODER}",
            f"trainer.default_root_dir={tmp_path / 'run'}",
            "trainer.enable_progress_bar=false",
        ],
    )
    scores = evaluate(tmp_path / "run", ["mode=S2T"])["sets"]["val"]

    record_property("digit_accuracy", scores["text_exact"])
    with capsys.disabled():
        # the figure is what a reader wants of this test
        print(  # noqa: T201
            f"\ndigit accuracy on the unheard speaker {HELD_OUT}: {scores['text_exact']:.0%} of {scores['count']}"
        )
    assert scores["count"] == 50
    assert result.metrics["train/loss"] < 1.0
    assert scores["text_exact"] >= 0.7, "the pipeline must carry over to a speaker it never heard"
