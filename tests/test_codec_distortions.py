"""Codecs as distortions: speech comes back at its length and its place in time, and the worse the fewer bits it had."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import butter, sosfiltfilt

from fac_lightning.config import instantiate
from fac_lightning.data.distortions import (
    ALawCodec,
    Chain,
    FileCodec,
    GSMCodec,
    MP3Codec,
    MuLawCodec,
    OneOf,
    OpusCodec,
    Sometimes,
    Speed,
    VorbisCodec,
    code_file,
    sample_rng,
)
from fac_lightning.testing import check_distortion

RATE = 16000
CODECS = [MuLawCodec(), ALawCodec(), GSMCodec(), OpusCodec(), MP3Codec(), VorbisCodec()]


def hum(rate: int = RATE, seconds: float = 1.0) -> np.ndarray:
    """Noise between 200 and 1200 Hz, which every codec keeps recognisable."""
    noise = np.random.default_rng(0).standard_normal(round(rate * seconds))
    band = sosfiltfilt(butter(4, [200, 1200], "band", fs=rate, output="sos"), noise)
    return (0.3 * band / np.abs(band).max()).astype(np.float32)


def snr(clip: np.ndarray, coded: np.ndarray) -> float:
    return float(10 * np.log10(np.square(clip).sum() / np.square(clip - coded).sum()))


def lag(clip: np.ndarray, coded: np.ndarray) -> int:
    """Samples by which ``coded`` comes later."""
    size = 2 * len(clip)
    alike = np.fft.irfft(np.fft.rfft(coded, size) * np.fft.rfft(clip, size).conj(), size)
    return int(alike.argmax()) - (size if alike.argmax() > size // 2 else 0)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_every_codec_keeps_the_contract(codec):
    check_distortion(codec)
    if not isinstance(codec, OpusCodec):  # the slowest
        check_distortion(codec, 22050)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize(
    "codec",
    [MuLawCodec(), GSMCodec(), OpusCodec((12e3, 12e3)), VorbisCodec((0.1, 0.1))]
    + [MP3Codec((bits, bits)) for bits in (8e3, 16e3, 32e3, 64e3)],  # without and with room for the header
    ids=repr,
)
def test_speech_stays_where_it_was(codec, rate):
    clip = hum(rate)
    coded = codec(clip, rate, sample_rng(0, "x"))
    assert len(coded) == len(clip)
    assert abs(lag(clip, coded)) <= rate // 1000  # a millisecond


@pytest.mark.parametrize("bits", [8e3, 24e3, 160e3])
def test_an_mp3_lies_sample_by_sample_whether_its_header_says_the_delay_or_not(bits):
    clip = hum()
    assert lag(clip, MP3Codec((bits, bits))(clip, RATE, sample_rng(0, "x"))) == 0


def test_telephones_leave_what_lies_below_four_kilohertz():
    hiss = 0.1 * np.random.default_rng(1).standard_normal(RATE).astype(np.float32)
    for codec in (MuLawCodec(), ALawCodec()):
        assert snr(hum(), codec(hum(), RATE, sample_rng(0, "x"))) > 33
        spectrum = np.square(np.abs(np.fft.rfft(codec(hiss, RATE, sample_rng(0, "x")))))
        frequency = np.fft.rfftfreq(RATE, 1 / RATE)
        assert spectrum[frequency > 4300].sum() < 1e-3 * spectrum.sum()
    assert 0 < snr(hum(), GSMCodec()(hum(), RATE, sample_rng(0, "x"))) < 25


@pytest.mark.parametrize(
    ("poor", "good"),
    [
        (OpusCodec((6e3, 6e3)), OpusCodec((64e3, 64e3))),
        (MP3Codec((8e3, 8e3)), MP3Codec((64e3, 64e3))),
        (VorbisCodec((0.0, 0.0)), VorbisCodec((1.0, 1.0))),
    ],
    ids=repr,
)
def test_more_bits_are_nearer_to_the_clip(poor, good):
    heard = [snr(hum(), codec(hum(), RATE, sample_rng(0, "x"))) for codec in (poor, good)]
    assert heard[0] + 6 < heard[1]


def test_the_quality_is_drawn_for_each_clip():
    codec = OpusCodec((6e3, 64e3))
    first, again, other = (codec(hum(), RATE, sample_rng(0, name)) for name in "aab")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_loud_clips_are_not_cut_and_long_ones_are_written_in_pieces():
    loud = 3 * hum()
    assert np.corrcoef(MuLawCodec()(loud, RATE, sample_rng(0, "x")), loud)[0, 1] > 0.99
    assert len(code_file(np.zeros(1_000_000, np.float32), RATE, "OGG", "VORBIS")) == 1_000_000


def test_codecs_are_built_from_a_recipe():
    room = "fac_lightning.data.distortions"
    made = instantiate({"_target_": f"{room}.MP3Codec", "bitrate": [16000, 24000]})
    assert made == MP3Codec((16000.0, 24000.0))


def test_what_no_codec_has_is_refused():
    with pytest.raises(ValueError, match=r"bitrate must be a range .*6000 <= low.*256000, got \[1000.0, 24000.0\]"):
        OpusCodec((1e3, 24e3))
    with pytest.raises(ValueError, match="bitrate must be a range"):
        MP3Codec((8e3, 400e3))
    with pytest.raises(ValueError, match="quality must be a range"):
        VorbisCodec((0.0, 2.0))

    class Impossible(FileCodec):
        container, subtype, rates = "WAV", "VORBIS", (RATE,)

        def options(self, sample_rate, rng):
            return {}

        def __init__(self):
            self.__post_init__()

    with pytest.raises(ValueError, match=r"Impossible needs WAV VORBIS, which libsndfile .* does not write"):
        Impossible()


@pytest.mark.parametrize(
    "distortion",
    [
        Speed(),
        Chain([MuLawCodec(), Speed((0.7, 1.3)), VorbisCodec(), Speed()]),
        OneOf([Speed((0.5, 0.5)), Speed((2.0, 2.0)), MuLawCodec()], weights=[1.0, 1.0, 2.0]),
        Sometimes(Chain([Speed((1.3, 1.5)), ALawCodec()])),
    ],
    ids=repr,
)
def test_a_settled_length_is_the_length_that_comes(distortion):
    lengths = set()
    for i in range(12):
        settled = distortion.settle(sample_rng(i, "length"))
        lengths.add(settled.num_samples(5001))
        assert len(settled(hum()[:5001], RATE, sample_rng(i, "sound"))) == settled.num_samples(5001)
    assert len(lengths) > 1


def test_a_length_that_nobody_announces_is_told():
    class Doubled(Speed):
        settle = FileCodec.settle

    with pytest.raises(NotImplementedError, match="Doubled changes the length of clips and does not tell to what"):
        Sometimes(Doubled(), 1.0).settle(sample_rng(0, "x"))
    with pytest.raises(AssertionError, match="give it the methods settle and num_samples"):
        check_distortion(Doubled())
    with pytest.raises(ValueError, match=r"a speed between 0.9 and 1.1 has no length yet; settle it"):
        Speed().num_samples(5)

    class Liar(Speed):
        def num_samples(self, count):
            return count

    with pytest.raises(AssertionError, match=r"16000 samples were announced, \d+ came out"):
        check_distortion(Chain([Liar((0.9, 0.9))]))
