"""Sizes and rates of tokenizer and model: a mismatch names both numbers and what fits."""

import pytest
import torch

from fac_lightning.adapters import CIFGrouping, ConcatGrouping
from fac_lightning.cli.build import build
from fac_lightning.cli.show_command import rates
from fac_lightning.config import Recipe, UserError
from fac_lightning.heads import ParallelHead
from fac_lightning.models import SpeechLM, matching_groups
from fac_lightning.testing import FrameEncoder, tiny_backbone, tiny_speech_lm
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms


class Silence(SpeechTokenizer):
    """A tokenizer of any rate and size that has nothing to say."""

    def __init__(self, frame_rate: float = 25.0, codebook_size: int = 32, num_codebooks: int = 1) -> None:
        super().__init__()
        self.hop_length = 40
        self.sample_rate = frame_rate * 40
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks

    def encode(self, audio, lengths=None):
        frames = -(-audio.shape[1] // self.hop_length)
        return SpeechCodes(
            torch.zeros(len(audio), frames, self.num_codebooks).long(), torch.full((len(audio),), frames)
        )

    def decode(self, codes, lengths=None):
        audio = torch.zeros(len(codes), codes.shape[1] * self.hop_length)
        return Waveforms(audio, torch.full((len(codes),), audio.shape[1]), self.sample_rate)


def model(frames, codes, encoder_rate=50, **options):
    encoder = FrameEncoder(sample_rate=1000, hop_length=1000 // encoder_rate)
    return SpeechLM(
        tiny_backbone(),
        head=ParallelHead(16, codes, 32),
        encoder=encoder,
        feature_adapter=ConcatGrouping(encoder.dim, frames, 16),
        **options,
    )


def test_what_fits_passes():
    model(10, 5).check_tokenizer(Silence(25))
    model(10, 15).check_tokenizer(Silence(75))  # EnCodec
    model(8, 2).check_tokenizer(Silence(12.5))  # Mimi at 6.25 positions a second
    model(10, 17).check_tokenizer(Silence(86.13))  # DAC: no whole group gives 5 a second
    SpeechLM(tiny_backbone()).check_tokenizer(Silence(25, 1024, 8))  # says no codes


@pytest.mark.parametrize(
    ("frames", "codes", "rate", "heard", "said", "fix"),
    [
        (10, 5, 75, 5, 15, r"set vars.group_size \(of codes\) to 15 \(5 and 5 a second\);"),
        (10, 2, 12.5, 5, 6.25, r"set model.feature_adapter.group_size to 8 \(6.25 and 6.25 a second\), or"),
        (10, 5, 12.5, 5, 2.5, r"group_size to 12 and vars.group_size \(of codes\) to 3 \(4.17 and 4.17 a second\);"),
        (5, 5, 25, 10, 5, r"set model.feature_adapter.group_size to 10 \(5 and 5 a second\), or"),
    ],
)
def test_rates_that_lie_apart_name_both_and_the_groups_that_fit(frames, codes, rate, heard, said, fix):
    whole = rf"has {heard} positions a second \(encoder.frame_rate 50 / feature_adapter.group_size {frames}\) but the "
    whole += rf"model's own {said} \(tokenizer.frame_rate {rate} / group_size {codes}\): .*{fix}"
    with pytest.raises(ValueError, match=whole):
        model(frames, codes).check_tokenizer(Silence(rate))
    model(frames, codes, rate_tolerance=1.0).check_tokenizer(Silence(rate))


def test_rates_that_no_groups_bring_together_say_so():
    with pytest.raises(
        ValueError, match=r"no whole groups bring them closer; if they are to differ, set model\.rate_tol"
    ):
        model(1, 1, encoder_rate=1, rate_tolerance=0.0).check_tokenizer(Silence(1.05))


def test_a_variable_rate_has_none_to_agree_on():
    made = model(10, 15)
    made.feature_adapter = CIFGrouping(made.encoder.dim, 10, 16)
    made.check_tokenizer(Silence(25))
    assert "-> at most 5 positions/s" in next(rates(made))


def test_sizes_of_codes_that_differ_are_all_named():
    want = (
        r"Silence does not fit the model: tokenizer.num_codebooks \(8\) != head.num_codebooks \(1\), "
        r"tokenizer.codebook_size \(1024\) != head.codebook_size \(32\); set vars.num_codebooks to 8 and "
        r"vars.codebook_size to 1024"
    )
    with pytest.raises(ValueError, match=want):
        model(10, 5).check_tokenizer(Silence(25, 1024, 8))
    mute = tiny_speech_lm()
    mute.head = None
    with pytest.raises(ValueError, match=r"!= code_adapter.codebook_size \(32\)"):
        mute.check_tokenizer(Silence(25, 64))


def test_groups_that_match_are_found():
    assert matching_groups(50, 75, 5) == (10, 15)
    assert matching_groups(50, 12.5, 6.25) == (8, 2)
    assert matching_groups(50, 86.13, 5) == (10, 17)
    assert matching_groups(12.5, 25, 5) == (3, 6)
    for wanted in (0.5, 3, 7, 200):
        frames, codes = matching_groups(62.5, 40, wanted)
        assert min(frames, codes) >= 1


def test_a_senseless_tolerance_is_refused():
    with pytest.raises(ValueError, match=r"rate_tolerance must lie between 0 and 1, got 1\.5"):
        SpeechLM(tiny_backbone(), rate_tolerance=1.5)


def test_training_and_show_refuse_it_before_data_are_read():
    tree = {
        "model": {"_target_": "fac_lightning.testing.tiny_speech_lm"},
        "tokenizer": {"_target_": f"{__name__}.Silence", "frame_rate": 12.5},
        "data": {"_target_": "fac_lightning.data.SpeechChatDataModule", "train": "nowhere", "text_tokenizer": "none"},
        "task": {"_target_": "fac_lightning.tasks.SpeechSFT"},
    }
    with pytest.raises(UserError, match=r"but the model's own 2.5 \(tokenizer.frame_rate 12.5 / group_size 5\)"):
        build(Recipe("sizes.yaml", tree))
    lines = list(rates(tiny_speech_lm(), Silence(12.5)))
    assert "25 frames/s -> /5 -> 5 positions/s" in lines[0]
    assert "vars.group_size (of codes) to 3" in lines[-1]
    assert len(list(rates(tiny_speech_lm(), Silence(25)))) == 2
