"""Whisper's layers side by side keep the encoder's contract and say which they are."""

import pytest
import torch

from fac_lightning.encoders import WhisperEncoder, WhisperLayers

CONFIG = {
    "d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 50,
    "pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1,
}  # fmt: skip


def layers(*chosen: int) -> WhisperLayers:
    torch.manual_seed(0)
    return WhisperLayers(pretrained=False, config=CONFIG, layers=chosen).eval()


def test_last_part_is_the_plain_encoder():
    torch.manual_seed(0)
    plain = WhisperEncoder(pretrained=False, config=CONFIG).eval()
    both, audio = layers(0, 2), torch.randn(2, 3300) * 0.1
    assert (both.dim, plain.dim) == (48, 16)
    with torch.no_grad():
        lengths = torch.tensor([3300, 1000])
        wide, narrow = both(audio, lengths), plain(audio, lengths)
    assert wide.features.shape == (2, 11, 48)
    torch.testing.assert_close(wide.features[..., 32:], narrow.features)
    assert not wide.features[1, 4:].any()


def test_other_layers_are_another_state():
    one, other = layers(0).state_dict(), layers(2).state_dict()
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_layers_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="between 0 and 2"):
        layers(3)
