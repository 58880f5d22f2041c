"""X-Codec, X-Codec 2 and NeuCodec: transformers' codes, and filter banks without torchaudio."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.testing import check_tokenizer
from fac_lightning.tokenizers import NeuCodecTokenizer, XCodec2Tokenizer, XCodecTokenizer
from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.weights import CheckpointError

W2V_BERT = {
    "model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "feature_projection_input_dim": 40, "conv_depthwise_kernel_size": 3,
}  # fmt: skip
FINITE = {
    "encoder_hidden_size": 2, "downsampling_ratios": [4, 4, 4, 5], "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
    "quantization_dim": 80, "quantization_levels": [4, 4, 4], "semantic_model_config": W2V_BERT,
}  # fmt: skip
RESIDUAL = {
    "codebook_size": 32,
    "target_bandwidths": [0.25, 1.0],
    "acoustic_model_config": {
        "model_type": "dac", "encoder_hidden_size": 2, "downsampling_ratios": [8, 5, 4, 2], "decoder_hidden_size": 16,
        "upsampling_ratios": [8, 5, 4, 2], "hidden_size": 8,
    },
    "semantic_model_config": {
        "model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "conv_dim": [4] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
    },
}  # fmt: skip
TINY = {XCodecTokenizer: RESIDUAL, XCodec2Tokenizer: FINITE, NeuCodecTokenizer: FINITE}
KINDS = pytest.mark.parametrize("kind", TINY, ids=lambda kind: kind.__name__)
LENGTHS = pytest.mark.parametrize("samples", [1, 319, 320, 321, 1600, 1700])


def tiny(kind: type, **changes: object) -> FrozenCodec:
    books = {"num_codebooks": 3} if kind is XCodecTokenizer else {}
    return kind(pretrained=False, config=TINY[kind], **books, **changes)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 0.1


def seamless(audio: Tensor) -> Tensor:
    """Filter banks ``(1, T, 40)`` of ``(S,)`` as the released scripts of X-Codec 2 compute them."""
    extract = transformers.SeamlessM4TFeatureExtractor(feature_size=20, num_mel_bins=20)
    found = extract(audio.numpy(), sampling_rate=16000, return_tensors="np")["input_features"]
    return torch.from_numpy(np.asarray(found, np.float32))


@KINDS
def test_codec_keeps_the_contract(kind):
    tokenizer = tiny(kind)
    check_tokenizer(tokenizer)
    codes = tokenizer.encode(noise(1, 60 * 320)).codes[0]
    assert min(len(column.unique()) for column in codes.T) > 5, "random weights must answer noise with many codes"


@LENGTHS
def test_xcodec_2_gives_the_codes_of_transformers(samples):
    tokenizer, audio = tiny(XCodec2Tokenizer), noise(samples)
    filled = F.pad(audio, (0, 320 - samples % 320))  # a whole frame behind a whole frame, as its extractor does
    expected = tokenizer.model.encode(filled[None, None], seamless(F.pad(filled, (160, 160)))).audio_codes[0, 0]
    assert len(expected) == samples // 320 + 1
    found = tokenizer.encode(audio[None]).codes[0, :, 0]
    assert found.tolist() == expected[: -(-samples // 320)].tolist()


@LENGTHS
def test_neucodec_gives_the_codes_of_transformers_for_whole_frames(samples):
    tokenizer, audio = tiny(NeuCodecTokenizer), noise(samples)
    filled = F.pad(audio, (0, -samples % 320 + 320))
    expected = tokenizer.model.encode(filled[None, None], seamless(filled)).audio_codes[0, 0]
    assert tokenizer.encode(audio[None]).codes[0, :, 0].tolist() == expected.tolist()


@LENGTHS
def test_xcodec_gives_the_codes_of_transformers_coarsest_first(samples):
    tokenizer, audio = tiny(XCodecTokenizer), noise(samples)
    filled = F.pad(audio, (0, -samples % 320))[None, None]
    found = tokenizer.encode(audio[None]).codes[0]
    for bandwidth, books in ((0.25, 1), (1.0, 3)):
        expected = tokenizer.model.encode(filled, bandwidth, return_dict=True).audio_codes[0]
        assert torch.equal(found[:, :books], expected[:books].T)


@KINDS
def test_what_is_said_is_what_transformers_says(kind):
    tokenizer = tiny(kind)
    codes = torch.randint(tokenizer.codebook_size, (2, 9, tokenizer.num_codebooks))
    said = tokenizer.model.decode(audio_codes=codes.transpose(1, 2)).audio_values
    found = tokenizer.decode(codes)
    torch.testing.assert_close(found.audio, said[:, 0])
    assert found.sample_rate == (24000 if kind is NeuCodecTokenizer else 16000)
    assert found.audio.shape[1] == 9 * found.sample_rate // 50


@KINDS
def test_a_folder_that_transformers_wrote_is_read_whole(kind, tmp_path):
    drawn = tiny(kind).model
    stored = type(drawn)(drawn.config)
    for name, value in stored.state_dict().items():
        if name.endswith("codebook.embed"):
            value.normal_()
    stored.save_pretrained(tmp_path)
    loaded = kind(str(tmp_path), **({"num_codebooks": 3} if kind is XCodecTokenizer else {}))
    for name, value in loaded.model.state_dict().items():
        owner, _, leaf = name.rpartition(".")
        torch.testing.assert_close(value, getattr(stored.get_submodule(owner), leaf).data)  # weight norms worked out
    with pytest.raises(CheckpointError, match="there is no folder"):
        kind(str(tmp_path / "none"))


@pytest.mark.parametrize("kind", [XCodec2Tokenizer, NeuCodecTokenizer], ids=lambda kind: kind.__name__)
def test_a_transformers_without_the_model_is_one_line(kind, monkeypatch):
    class Old:
        __version__ = "5.17.0"

    monkeypatch.setitem(__import__("sys").modules, "transformers", Old())
    name = kind.__name__.replace("Tokenizer", "Model").replace("XCodec2", "Xcodec2")
    with pytest.raises(ImportError, match=rf"needs {name}, which transformers 5.17.0 does not have: pip install -U"):
        kind(pretrained=False)


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="num_codebooks must be between 1 and 4, got 5"):
        XCodecTokenizer(pretrained=False, config=RESIDUAL, num_codebooks=5)
    with pytest.raises(ValueError, match="make a frame of 160 samples, but that of w2v-BERT has 320"):
        XCodec2Tokenizer(pretrained=False, config={**FINITE, "downsampling_ratios": [4, 4, 2, 5]})
    with pytest.raises(ValueError, match="set pretrained to false"):
        NeuCodecTokenizer(config=FINITE)
    with pytest.raises(ValueError, match="cannot decode chunks"):
        tiny(XCodecTokenizer).new_decoder_state(1)
