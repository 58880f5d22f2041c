"""Distortions: what each does is measured, and what each promises is kept."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fac_lightning.config import instantiate
from fac_lightning.data.distortions import (
    AdditiveNoise,
    BandLimit,
    Chain,
    Clipping,
    ColoredNoise,
    DecayingReverb,
    Distortion,
    OneOf,
    PacketLoss,
    Reverb,
    Sometimes,
    Speed,
    Volume,
    add_noise,
    clip_peaks,
    colored_noise,
    convolve_rir,
    decaying_rir,
    limit_band,
    lost_packets,
    sample_rng,
)
from fac_lightning.data.distortions.base import PEAK
from fac_lightning.testing import check_distortion

RATE = 16000
SHARED = Path(__file__).parents[2] / "shared" / "data" / "noise_rir"
needs_recordings = pytest.mark.skipif(not SHARED.is_dir(), reason="recorded noises and rooms (shared/data) not here")


@pytest.fixture
def speech():
    """A second of harmonics that come and go."""
    time = np.arange(RATE) / RATE
    tone = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 20))
    return (0.2 * tone * np.sin(2 * np.pi * 3 * time) ** 2).astype(np.float32)


@pytest.fixture
def recordings(tmp_path):
    """A folder of noises, one shorter than any clip and half silent, and one of rooms."""
    rng = np.random.default_rng(0)
    short, long = 0.1 * rng.standard_normal(2000), 0.3 * rng.standard_normal((4 * RATE, 2))
    short[:1000] = 0
    for folder, clips in (("noise", {"a.wav": short, "deep/b.flac": long}), ("rir", {"r.wav": room()})):
        for name, clip in clips.items():
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / folder / name, clip, RATE)
    return tmp_path


def room():
    """An impulse response that begins late and is recorded softly."""
    response = np.zeros(3000)
    response[200], response[700], response[2500] = 0.05, 0.03, -0.01
    return response


def power(x):
    return float(np.mean(np.square(x, dtype=np.float64)))


def db(ratio):
    return 10 * np.log10(ratio)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_noise_stands_at_its_ratio(speech, snr):
    noise = np.random.default_rng(1).standard_normal(RATE)
    mixed = add_noise(speech, noise, snr)
    assert db(power(speech) / power(mixed - speech)) == pytest.approx(snr, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_noise_recordings_are_laid_under_the_whole_clip_at_the_ratio_asked_for(speech, recordings, seed):
    quiet = speech * 0.1  # so that nothing is scaled down and the noise can be read off
    mixed = AdditiveNoise(str(recordings / "noise"), snr=(3.0, 3.0))(quiet, RATE, sample_rng(seed, "x"))
    assert db(power(quiet) / power(mixed - quiet)) == pytest.approx(3.0, abs=0.1)
    assert power((mixed - quiet)[-4000:]) > 0.1 * power(mixed - quiet)  # short recordings start again


def test_loud_mixtures_are_scaled_and_not_cut(speech, recordings):
    loud = speech / np.abs(speech).max()
    mixed = AdditiveNoise(str(recordings / "noise"), snr=(0.0, 0.0))(loud, RATE, sample_rng(0, "x"))
    assert np.abs(mixed).max() == pytest.approx(PEAK, abs=1e-6)
    assert (np.abs(mixed) > PEAK - 1e-5).sum() < 5  # cut peaks would be many
    gain = np.dot(mixed, loud) / np.dot(loud, loud)
    assert db(power(gain * loud) / power(mixed - gain * loud)) == pytest.approx(0.0, abs=0.3)


def test_a_ratio_to_silence_is_refused(speech):
    with pytest.raises(ValueError, match=r"ratio of 5 dB needs sound on both sides; the powers are 0 and"):
        add_noise(np.zeros(10), np.ones(10), 5.0)


@pytest.mark.parametrize(("exponent", "slope"), [(0.0, 0.0), (1.0, -3.0), (2.0, -6.0)])
def test_colored_noise_falls_by_its_slope_per_octave(exponent, slope):
    noise = colored_noise(1 << 16, exponent, np.random.default_rng(0))
    spectrum = np.square(np.abs(np.fft.rfft(noise)))
    octaves = [np.mean(spectrum[2**k : 2 ** (k + 1)]) for k in range(8, 15)]
    assert np.diff(db(np.array(octaves))).mean() == pytest.approx(slope, abs=0.3)


def test_a_room_is_a_convolution(speech):
    rir = room()
    wet = convolve_rir(speech, rir)
    expected = np.convolve(speech.astype(np.float64), rir)[200 : 200 + len(speech)]  # the direct path at time 0
    np.testing.assert_allclose(wet / np.linalg.norm(wet), expected / np.linalg.norm(expected), atol=1e-6)
    assert power(wet) == pytest.approx(power(speech))


def test_a_room_with_a_direct_path_alone_changes_nothing(speech):
    np.testing.assert_allclose(convolve_rir(speech, np.array([0, 0, 0.3, 0])), speech, atol=1e-6)


def test_rooms_come_from_files(speech, recordings):
    wet = Reverb([str(recordings / "rir" / "r.wav")])(speech, RATE, sample_rng(0, "x"))
    np.testing.assert_allclose(wet, convolve_rir(speech, room()), atol=2e-3)  # the file has 16 bits


def test_a_decaying_room_keeps_its_time_and_its_ratio():
    rir = decaying_rir(0.5, 4.0, RATE, np.random.default_rng(0))
    assert rir[0] == 1
    assert db(1 / np.sum(np.square(rir[1:]))) == pytest.approx(4.0, abs=1e-6)
    left = np.cumsum(np.square(rir[::-1]))[::-1]  # Schroeder's decay curve
    first, second = np.argmax(left < left[1] * 1e-1), np.argmax(left < left[1] * 1e-3)
    assert 3 * (second - first) / RATE == pytest.approx(0.5, rel=0.05)  # 20 dB of the 60


def test_clipping_cuts_at_its_level_and_keeps_the_peak(speech):
    cut = clip_peaks(speech, 0.25)
    peak = np.abs(speech).max()
    assert np.abs(cut).max() == pytest.approx(peak)
    inside = np.abs(speech) < 0.25 * peak
    np.testing.assert_allclose(cut[inside], 4 * speech[inside], rtol=1e-5)
    np.testing.assert_allclose(np.abs(cut[~inside]), peak, rtol=1e-5)


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 1.0), (0.3, 2.0), (0.05, 8.0)])
def test_packets_are_lost_at_their_rate_in_runs_of_their_length(rate, burst):
    lost = lost_packets(400_000, rate, burst, np.random.default_rng(0))
    assert lost.mean() == pytest.approx(rate, rel=0.05)
    starts = np.flatnonzero(np.diff(lost.astype(int)) == 1)
    assert lost.sum() / len(starts) == pytest.approx(burst, rel=0.05)


def test_lost_packets_are_silent_and_the_others_untouched(speech):
    heard = PacketLoss(rate=(0.3, 0.3), packet=0.01)(speech, RATE, sample_rng(2, "x"))
    packets, before = heard.reshape(-1, 160), speech.reshape(-1, 160)
    lost = ~packets.any(axis=1) & before.any(axis=1)
    assert 0.15 < lost.mean() < 0.45
    np.testing.assert_array_equal(packets[~lost], before[~lost])
    assert np.array_equal(PacketLoss(rate=(0.0, 0.0))(speech, RATE, sample_rng(2, "x")), speech)


def test_a_band_is_left_and_stays_in_place():
    time = np.arange(RATE) / RATE
    tones = {f: np.sin(2 * np.pi * f * time) for f in (60, 1000, 6000)}
    left = limit_band(sum(tones.values()), 300, 3400, RATE)
    middle = slice(2000, -2000)
    for frequency, gain in ((60, 0), (1000, 1), (6000, 0)):
        found = 2 * np.mean(left[middle] * tones[frequency][middle])  # in phase
        assert found == pytest.approx(gain, abs=0.05)


def test_faster_speech_is_shorter_and_higher(speech):
    fast = Speed((1.25, 1.25))(speech, RATE, sample_rng(0, "x"))
    assert len(fast) == len(speech) / 1.25
    spectrum = np.abs(np.fft.rfft(fast))
    assert np.fft.rfftfreq(len(fast), 1 / RATE)[spectrum[:400].argmax()] == pytest.approx(150 * 1.25, abs=8)


def test_volume_is_a_gain(speech):
    np.testing.assert_allclose(Volume((-6.0, -6.0))(speech, RATE, sample_rng(0, "x")), speech * 10**-0.3, rtol=1e-5)


def test_combinations_do_what_their_parts_do(speech):
    half, tenth = Volume((-6.0, -6.0)), Volume((-20.0, -20.0))
    both = Chain([half, tenth])(speech, RATE, sample_rng(0, "x"))
    np.testing.assert_allclose(both, speech * 10**-1.3, rtol=1e-4)
    choice = OneOf([half, tenth], weights=[3.0, 1.0])
    ratios = [np.abs(choice(speech, RATE, sample_rng(0, str(i)))).max() / np.abs(speech).max() for i in range(200)]
    assert np.mean(np.isclose(ratios, 0.1, rtol=1e-3)) == pytest.approx(0.25, abs=0.08)
    now_and_then = Sometimes(tenth, 0.3)
    changed = [not np.array_equal(now_and_then(speech, RATE, sample_rng(0, str(i))), speech) for i in range(200)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.1)
    assert not Chain([half, Speed()]).keeps_length
    assert not OneOf([half, Speed()]).keeps_length
    assert not Sometimes(Speed()).keeps_length
    assert Sometimes(half).keeps_length


def every_part(recordings) -> list[Distortion]:
    noise, room = AdditiveNoise(str(recordings / "noise")), Reverb(str(recordings / "rir"))
    plain = [noise, room, ColoredNoise(), DecayingReverb(), Clipping(), PacketLoss(), BandLimit(), Speed(), Volume()]
    return [*plain, Chain([room, noise, BandLimit()]), OneOf(plain), Sometimes(noise)]


@pytest.mark.parametrize("place", range(12))
def test_every_part_keeps_the_contract(recordings, place):
    check_distortion(every_part(recordings)[place])


def test_a_broken_contract_is_told():
    class Forgetful(Distortion):
        def distort(self, audio, sample_rate, rng):
            return audio * np.random.default_rng().random()

    with pytest.raises(AssertionError, match="the same generator must give the same samples"):
        check_distortion(Forgetful())


def test_chance_depends_on_seed_and_clip_alone(speech, recordings):
    part = Chain([AdditiveNoise(str(recordings / "noise")), PacketLoss()])
    first = part(speech, RATE, sample_rng(1, "a"))
    part(speech, RATE, sample_rng(1, "b"))
    assert np.array_equal(part(speech, RATE, sample_rng(1, "a")), first)
    assert np.array_equal(pickle.loads(pickle.dumps(part))(speech, RATE, sample_rng(1, "a")), first)
    assert not np.array_equal(part(speech, RATE, sample_rng(1, "b")), first)
    assert not np.array_equal(part(speech, RATE, sample_rng(2, "a")), first)


def test_parts_are_built_from_a_recipe(recordings):
    room = "fac_lightning.data.distortions"
    node = {
        "_target_": f"{room}.OneOf",
        "distortions": [
            {"_target_": f"{room}.AdditiveNoise", "noises": str(recordings / "noise"), "snr": [0.0, 10.0]},
            {"_target_": f"{room}.PacketLoss", "rate": [0.1, 0.2]},
        ],
    }
    made = instantiate(node)
    assert made.distortions[0].snr == (0.0, 10.0)
    assert "snr=(0.0, 10.0)" in repr(made)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ColoredNoise(snr=(10.0, 5.0)), r"snr must be a range \(low, high\).*got \[10.0, 5.0\]"),
        (lambda: Clipping(level=(0.0, 0.5)), r"level must be a range .*0.0001 <= low"),
        (lambda: BandLimit(low=(100.0, 3000.0)), "the lower edge .* must lie below the upper edge"),
        (lambda: PacketLoss(rate=(0.1, 0.8), burst=2.0), "cannot be lost at a rate of 0.8 in runs of 2"),
        (lambda: PacketLoss(packet=0.0), "packet must be above 0 s"),
        (lambda: Speed((0.0, 1.0)), "factor must be a range"),
        (lambda: Sometimes(Volume(), 1.5), "probability must lie between 0 and 1, got 1.5"),
        (lambda: OneOf([]), "0 distortions and the weights None"),
        (lambda: OneOf([Volume()], [0.0]), "not all 0"),
        (lambda: Volume()(np.zeros((2, 5)), RATE, sample_rng(0, "x")), r"mono samples \(S,\), got the shape \(2, 5\)"),
    ],
)
def test_what_means_nothing_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_files_that_are_not_there_or_hold_nothing_are_told(tmp_path, speech):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; name a file or a folder of sound files"):
        AdditiveNoise(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty holds no sound files \(.flac, .ogg, .wav\)"):
        Reverb(str(tmp_path / "empty"))
    soundfile.write(tmp_path / "empty" / "silence.wav", np.zeros(100), RATE)
    with pytest.raises(ValueError, match=r"silence.wav is silent or not finite"):
        AdditiveNoise(str(tmp_path / "empty"))(speech, RATE, sample_rng(0, "x"))
    (tmp_path / "empty" / "silence.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"silence.wav cannot be read"):
        AdditiveNoise(str(tmp_path / "empty"))(speech, RATE, sample_rng(0, "x"))


@needs_recordings
def test_recorded_noises_and_rooms(speech):
    quiet = speech * 0.02
    for i, file in enumerate(sorted(SHARED.glob("noise*.wav"))):
        mixed = AdditiveNoise(str(file), snr=(10.0, 10.0))(quiet, RATE, sample_rng(i, "x"))
        assert db(power(quiet) / power(mixed - quiet)) == pytest.approx(10.0, abs=0.1)
    for i, file in enumerate(sorted(SHARED.glob("rir*.wav"))):
        hiss = 0.01 * np.random.default_rng(i).standard_normal(RATE)
        wet = Reverb(str(file))(hiss, RATE, sample_rng(i, "x"))
        assert power(wet) == pytest.approx(power(hiss), rel=1e-3)
        alike = np.fft.irfft(np.fft.rfft(wet, 2 * RATE) * np.fft.rfft(hiss, 2 * RATE).conj())
        assert np.abs(alike).argmax() <= 16  # the direct path is where it was, within a millisecond
