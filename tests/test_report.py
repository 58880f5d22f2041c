"""The report holds the figures of the run, its curves and its playable pairs."""

import json

import numpy as np
import pytest

from fac_lightning.evaluation.audio import write_wav
from fac_lightning.evaluation.report import RunReport, read_curves
from fac_lightning.resampling import resample


@pytest.fixture
def run(tmp_path):
    logs = tmp_path / "sft" / "logs" / "version_0"
    logs.mkdir(parents=True)
    (logs / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,1,4.0,\n0,2,2.5,\n0,2,,3.25\n")
    (tmp_path / "sft" / "recipe.yaml").write_text("seed: 7 # <resolved>\n")
    tone = np.sin(np.arange(8000) / 9).astype(np.float32) * 0.3
    for kind in ("question", "answer", "truth"):
        write_wav(tmp_path / "eval" / "audio" / f"x.{kind}.wav", tone, 16000)
    answer = {
        "id": "x", "question": "What is <b>?", "voice": "v", "reference": "It is b.", "text": "It is b.", "exact": True,
        "finished": True, "seconds": 0.5, "transcript": "it is b",
        "files": {kind: f"audio/x.{kind}.wav" for kind in ("question", "answer", "truth")},
    }  # fmt: skip
    scored = {"count": 1, "text_exact": 1.0, "asr_wer": 0.125, "text_exact_by_voice": {"v": 1.0}, "answers": [answer]}
    (tmp_path / "eval" / "results.json").write_text(json.dumps({"sets": {"unseen": scored}}))
    (tmp_path / "stages").mkdir()
    for name, seconds in (("sft", 12.0), ("evaluate", 3.0)):
        state = {"key": "k", "done": True, "seconds": seconds, "peak_rss_mb": 10 * seconds, "result": None}
        (tmp_path / "stages" / f"{name}.json").write_text(json.dumps(state))
    return tmp_path


def make_report(run):
    return RunReport(
        run=str(run),
        out=str(run / "report"),
        results=str(run / "eval" / "results.json"),
        fits={"sft": str(run / "sft")},
        headline={"text_exact_unseen_wording": "sets/unseen/text_exact", "never_measured": "sets/nowhere/x"},
        recipe=str(run / "sft"),
        metrics=str(run / "metrics.json"),
        title="Small talk",
    )


def test_metrics_hold_headline_stages_and_totals(run):
    figures = make_report(run).run()
    assert json.loads((run / "metrics.json").read_text()) == figures
    assert figures["text_exact_unseen_wording"] == 1.0
    assert figures["never_measured"] is None
    assert figures["stages"]["sft"]["losses"] == {"train/loss": 2.5, "val/loss": 3.25}
    assert figures["stages"]["evaluate"] == {"seconds": 3.0, "peak_rss_mb": 30}
    assert figures["peak_rss_mb"] == 120
    assert figures["wall_seconds"] >= 15.0


def test_page_is_complete_and_escapes_what_it_shows(run):
    make_report(run).run()
    page = (run / "report" / "index.html").read_text()
    assert "What is &lt;b&gt;?" in page
    assert "seed: 7 # &lt;resolved&gt;" in page
    for file in ("losses.png", "spectrogram.png", "audio/x.question.wav", "audio/x.answer.wav"):
        assert file in page
        assert (run / "report" / file).stat().st_size > 500


def test_curves_are_read_by_name(run):
    assert read_curves(run / "sft")["train/loss"] == [(1, 4.0), (2, 2.5)]


def test_resampling_keeps_a_tone():
    tone = np.sin(2 * np.pi * 440 * np.arange(24000) / 24000).astype(np.float32)
    low = resample(tone, 24000, 16000)
    assert low.shape == (16000,)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(low - expected)[200:-200].max() < 0.01
