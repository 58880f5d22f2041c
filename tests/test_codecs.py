"""Codecs with ready weights: their libraries' codes and formats, ragged batches, chunks of a stream."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fac_lightning.testing import check_tokenizer
from fac_lightning.tokenizers import DACTokenizer, Encodec48kTokenizer, EncodecTokenizer, MimiTokenizer
from fac_lightning.tokenizers.frozen import FrozenCodec
from fac_lightning.weights import CheckpointError

SEANET = {"upsampling_ratios": [4, 2], "num_filters": 4, "hidden_size": 16, "codebook_size": 32}
TINY = {
    DACTokenizer: {
        "downsampling_ratios": [2, 5],  # an odd stride: the decoder falls short
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 16,
        "n_codebooks": 4,
        "codebook_size": 32,
        "codebook_dim": 4,
        "sampling_rate": 1000,
    },
    EncodecTokenizer: {**SEANET, "num_lstm_layers": 1, "target_bandwidths": [1.0], "sampling_rate": 400},
    Encodec48kTokenizer: {
        **SEANET,
        "num_lstm_layers": 1,
        "target_bandwidths": [1.0],
        "sampling_rate": 400,
        "audio_channels": 2,
        "use_causal_conv": False,
        "norm_type": "time_group_norm",
        "normalize": True,
        "chunk_length_s": 0.1,  # 5 frames
        "overlap": 0.01,
    },
    MimiTokenizer: {
        **SEANET,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 4,
        "upsample_groups": 16,
        "sliding_window": 5,
        "sampling_rate": 1600,
    },
}
KINDS = pytest.mark.parametrize("kind", TINY, ids=lambda kind: kind.__name__)


def tiny(kind: type, num_codebooks: int = 3, seed: int = 0, **changes: object) -> FrozenCodec:
    return kind(pretrained=False, num_codebooks=num_codebooks, seed=seed, config={**TINY[kind], **changes})


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


@KINDS
def test_codec_keeps_the_contract(kind):
    tokenizer = tiny(kind)
    check_tokenizer(tokenizer)
    spread = [len(column.unique()) for column in tokenizer.encode(noise(1, 100 * tokenizer.hop_length)).codes[0].T]
    assert min(spread[-2:]) > 5, "random weights must answer noise with many codes"


def test_long_convolutions_that_are_not_causal_do_not_leak():
    check_tokenizer(tiny(EncodecTokenizer, use_causal_conv=False, norm_type="time_group_norm"))


@pytest.mark.parametrize("pad_mode", ["constant", "replicate"])
def test_codec_that_mirrors_nothing_streams_from_the_first_frame(pad_mode):
    tokenizer = tiny(EncodecTokenizer, pad_mode=pad_mode)
    assert (tokenizer.first_chunk_frames, tokenizer.padded_from) == (1, 1)
    check_tokenizer(tokenizer)


# the libraries' own numbers


def test_mimi_is_that_of_transformers():
    tokenizer = tiny(MimiTokenizer)
    audio = noise(2, 20 * tokenizer.hop_length)
    codes = tokenizer.encode(audio).codes
    expected = tokenizer.model.encode(audio[:, None], num_quantizers=3).audio_codes
    assert torch.equal(codes, expected.transpose(1, 2))
    said = tokenizer.model.decode(codes.transpose(1, 2)).audio_values
    torch.testing.assert_close(tokenizer.decode(codes).audio, said[:, 0])


def test_dac_is_that_of_transformers_and_silent_where_it_says_nothing():
    tokenizer = tiny(DACTokenizer)
    audio = noise(2, 20 * tokenizer.hop_length)
    codes = tokenizer.encode(audio).codes
    assert torch.equal(codes, tokenizer.model.encode(audio[:, None], n_quantizers=3).audio_codes.transpose(1, 2))
    said = tokenizer.model.decode(audio_codes=codes.transpose(1, 2)).audio_values
    heard = tokenizer.decode(codes).audio
    assert said.shape[1] < heard.shape[1]
    torch.testing.assert_close(heard[:, : said.shape[1]], said)
    assert not heard[:, said.shape[1] :].any()


def test_encodec_is_that_of_transformers():
    tokenizer = tiny(EncodecTokenizer, num_codebooks=4)
    audio = noise(2, 20 * tokenizer.hop_length)
    expected = tokenizer.model.encode(audio[:, None], bandwidth=1.0).audio_codes[0]  # (B, Q, T)
    codes = tokenizer.encode(audio).codes
    assert torch.equal(codes, expected[:, :4].transpose(1, 2))
    said = tokenizer.model.decode(expected[None, :, :4], [None]).audio_values
    torch.testing.assert_close(tokenizer.decode(codes).audio, said[:, 0])


def test_encodec_48k_is_that_of_transformers_without_overlap():
    tokenizer = tiny(Encodec48kTokenizer, num_codebooks=5)
    model, hop = tokenizer.model, tokenizer.hop_length
    model.config.overlap = 0.0
    loudness = torch.tensor([0.001, 0.3]).repeat_interleave(40)  # of 40 samples each: two pieces, and a shorter one
    audio = torch.cat([noise(1, 80) * loudness, noise(1, 3 * hop, seed=1)], dim=1)
    found = model.encode(audio[:, None].expand(-1, 2, -1), bandwidth=1.0)
    own = torch.cat([codes[0] for codes in found.audio_codes], dim=1)[:4, : 10 + 3]  # (Q, T)
    codes = tokenizer.encode(audio).codes
    assert torch.equal(codes[0, :, 1:], own.T)
    assert codes[0, :, 0].unique_consecutive(return_counts=True)[1].tolist() == [5, 5, 3], "one level for every piece"
    scales = [tokenizer.volume(codes[0, start, 0]) for start in (0, 5, 10)]
    step = 102 / 30  # dB between levels, of 32 codes
    for scale, expected in zip(scales, found.audio_scales, strict=True):
        assert abs(20 * torch.log10(scale / expected)) <= step / 2 + 1e-3
    said = model.decode(found.audio_codes[:, :, :4], scales, last_frame_pad_length=found.last_frame_pad_length)
    torch.testing.assert_close(tokenizer.decode(codes).audio, said.audio_values.mean(1), atol=1e-6, rtol=1e-4)


def test_loudness_is_kept_to_a_twentieth_of_a_decibel():
    tokenizer = tiny(Encodec48kTokenizer)
    tokenizer.codebook_size = 1024
    volume = torch.logspace(-4.9, 0.05, 500)
    levels = tokenizer.level(volume)
    assert (20 * torch.log10(tokenizer.volume(levels) / volume)).abs().max() < 0.0501
    assert torch.equal(tokenizer.level(tokenizer.volume(torch.arange(1024))), torch.arange(1024))
    assert tokenizer.level(torch.tensor([0.0, 1e-9, 40.0])).tolist() == [0, 0, 1023]
    assert tokenizer.volume(torch.tensor(0)) == 0


def test_a_piece_is_as_loud_as_most_of_its_frames_say():
    tokenizer = tiny(Encodec48kTokenizer)
    codes = torch.randint(1, 32, (1, 5, 3), generator=torch.Generator().manual_seed(0))
    codes[..., 0] = torch.tensor([9, 9, 30, 9, 1])
    even = codes.clone()
    even[..., 0] = 9
    assert torch.equal(tokenizer.decode(codes).audio, tokenizer.decode(even).audio)


def test_loudness_alone_is_no_sound():
    with pytest.raises(ValueError, match="codes of 2 to 3 codebooks, got 1"):
        tiny(Encodec48kTokenizer).decode(torch.ones(1, 2, 1, dtype=torch.int64))


# ragged batches


@KINDS
def test_any_raggedness_gives_what_each_row_gives_alone(kind):
    tokenizer = tiny(kind)
    hop = tokenizer.hop_length
    samples = torch.tensor([1, hop, 6 * hop + 3, 7 * hop, 13 * hop - 1, 13 * hop, 30 * hop, 0])
    audio = noise(len(samples), 31 * hop)
    found = tokenizer.encode(audio, samples)
    heard = tokenizer.decode(found.codes, found.lengths)
    for row, (count, length) in enumerate(zip(samples.tolist(), found.lengths.tolist(), strict=True)):
        assert torch.equal(tokenizer.encode(audio[row : row + 1, :count]).codes[0], found.codes[row, :length])
        alone = tokenizer.decode(found.codes[row : row + 1, :length]).audio[0]
        torch.testing.assert_close(heard.audio[row, : length * hop], alone, atol=1e-5, rtol=1e-4)
    assert not found.codes[-1].any()


def test_large_batches_run_in_pieces(monkeypatch):
    tokenizer = tiny(MimiTokenizer)
    audio = noise(5, 20 * tokenizer.hop_length)
    expected, sizes, encode = tokenizer.encode(audio).codes, [], tokenizer.encode_rows
    monkeypatch.setattr("fac_lightning.tokenizers.frozen.BATCH_SECONDS", 45 / tokenizer.frame_rate)
    monkeypatch.setattr(tokenizer, "encode_rows", lambda rows: (sizes.append(len(rows)), encode(rows))[1])
    assert torch.equal(tokenizer.encode(audio).codes, expected)
    assert sizes == [2, 2, 1]


def test_codecs_that_see_no_later_frame_run_ragged_batches_at_once(monkeypatch):
    for kind, calls in ((MimiTokenizer, 1), (EncodecTokenizer, 2), (DACTokenizer, 4)):
        tokenizer, count = tiny(kind), []
        encode = tokenizer.encode_rows
        monkeypatch.setattr(tokenizer, "encode_rows", lambda rows, e=encode, c=count: (c.append(1), e(rows))[1])
        tokenizer.encode(noise(4, 20 * tokenizer.hop_length), torch.tensor([3, 9, 15, 20]) * tokenizer.hop_length)
        assert len(count) == calls, kind


@KINDS
def test_half_precision_around_it_changes_nothing(kind):
    tokenizer, audio = tiny(kind), noise(1, 200)
    codes = tokenizer.encode(audio).codes
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(audio).codes, codes)
        assert tokenizer.decode(codes).audio.dtype == torch.float32


# streams


@pytest.mark.parametrize("kind", [MimiTokenizer, EncodecTokenizer])
@pytest.mark.parametrize("sizes", [[7] + [1] * 53, [15] * 4, [60], [8, 0, 2, 50]], ids=str)
def test_chunks_are_the_whole(kind, sizes):
    tokenizer = tiny(kind, num_residual_layers=2)
    codes = torch.randint(32, (3, 60, 3), generator=torch.Generator().manual_seed(1))
    state = tokenizer.new_decoder_state(3)
    said = [tokenizer.decode_chunk(chunk, state) for chunk in codes.split(sizes, dim=1)]
    assert [chunk.shape[1] for chunk in said] == [size * tokenizer.hop_length for size in sizes]
    whole = tokenizer.decode(codes).audio
    torch.testing.assert_close(torch.cat(said, dim=1), whole, atol=1e-5 * float(whole.abs().max()), rtol=0)
    assert state.frames == 60


def test_a_stream_says_what_it_cannot():
    tokenizer, codes = tiny(EncodecTokenizer), torch.zeros(2, 20, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="first chunk of EncodecTokenizer must have 7 frames or more, got 6"):
        tokenizer.decode_chunk(codes[:, :6], tokenizer.new_decoder_state(2))
    with pytest.raises(ValueError, match="made for 3 rows, codes have 2"):
        tokenizer.decode_chunk(codes, tokenizer.new_decoder_state(3))
    with pytest.raises(ValueError, match="special codes"):
        tokenizer.decode_chunk(codes + 32, tokenizer.new_decoder_state(2))
    with pytest.raises(ValueError, match="codes of 1 to 3 codebooks, got 4"):
        tokenizer.decode(torch.zeros(1, 2, 4, dtype=torch.int64))
    for kind in (DACTokenizer, Encodec48kTokenizer):
        with pytest.raises(ValueError, match=f"{kind.__name__} cannot decode chunks.*causal is false"):
            tiny(kind).new_decoder_state(1)
        with pytest.raises(ValueError, match=f"{kind.__name__} cannot decode chunks.*causal is false"):
            tiny(kind).decode_chunk(codes, None)


@KINDS
def test_silence_is_what_silence_gives_far_from_its_edges(kind):
    tokenizer = tiny(kind)
    long = tokenizer.encode(torch.zeros(1, 400 * tokenizer.hop_length)).codes[0]
    assert torch.equal(tokenizer.silence_codes(5), long[100:105])
    with pytest.raises(ValueError, match="at least 0, got -1"):
        tokenizer.silence_codes(-1)


# files


def write_checkpoint(kind: type, folder: Path) -> Any:
    """A folder as the library writes it, and the library's model; drawn by the library but for the codebooks."""
    sizes = tiny(kind).model
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = type(sizes)(sizes.config).eval()
        for name, buffer in model.named_buffers():
            if name.endswith(("embed", "embed_sum")):
                buffer.normal_()
    model.save_pretrained(folder)
    return model


def library_codes(kind: type, model: Any, audio: Tensor) -> Tensor:
    if kind is EncodecTokenizer:
        return model.encode(audio[:, None], bandwidth=1.0).audio_codes[0][:, :3].transpose(1, 2)
    if kind is Encodec48kTokenizer:  # one piece
        codes = model.encode(audio[:, None].expand(-1, 2, -1), bandwidth=1.0).audio_codes
        return codes[0][:, :2].transpose(1, 2)
    count = {"n_quantizers": 3} if kind is DACTokenizer else {"num_quantizers": 3}
    return model.encode(audio[:, None], **count).audio_codes.transpose(1, 2)


@KINDS
def test_folder_of_transformers_is_read_without_a_network(kind, tmp_path, monkeypatch):
    model = write_checkpoint(kind, tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a local folder asks no network"))
    tokenizer = kind(str(tmp_path), num_codebooks=3)
    audio = noise(2, 5 * tokenizer.hop_length)
    own = tokenizer.encode(audio).codes[..., 1 if kind is Encodec48kTokenizer else 0 :]
    with torch.no_grad():
        assert torch.equal(own, library_codes(kind, model, audio))
    sizes = kind(str(tmp_path), num_codebooks=3, pretrained=False)
    assert (sizes.hop_length, sizes.codebook_size) == (tokenizer.hop_length, 32), "config.json alone gives the sizes"
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not tokenizer.train().training


OLD_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
    "encoder.encoder_seanet.": "encoder.",
    "decoder.decoder_seanet.": "decoder.",
    "encoder.encoder_transformer.": "encoder_transformer.",
    "decoder.decoder_transformer.": "decoder_transformer.",
    "encoder.downsample.": "downsample.",
    "decoder.upsample.": "upsample.",
}


@pytest.mark.parametrize("kind", [EncodecTokenizer, MimiTokenizer])
def test_names_of_the_released_files_are_read(kind, tmp_path):
    """The hub's files name weight norms as torch did in 2023, and Mimi's parts as transformers did before 5.23."""
    model = write_checkpoint(kind, tmp_path)
    state = {}
    for name, value in load_file(tmp_path / "model.safetensors").items():
        for new, old in OLD_NAMES.items():
            name = name.replace(new, old)
        state[name] = value
    assert any(name.endswith("weight_g") or name.startswith("upsample.") for name in state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer = kind(str(tmp_path), num_codebooks=3)
    audio = noise(2, 5 * tokenizer.hop_length)
    with torch.no_grad():
        assert torch.equal(tokenizer.encode(audio).codes, library_codes(kind, model, audio))


def test_a_checkpoint_that_is_none_is_named_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no folder './nowhere'; give a hub id"):
        MimiTokenizer("./nowhere")
    with pytest.raises(CheckpointError, match=r"cannot be loaded as MimiModel: .*no file named"):
        MimiTokenizer(str(tmp_path))
    write_checkpoint(DACTokenizer, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({n: v for n, v in state.items() if "decoder.conv2" not in n}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not hold all of DacModel: decoder\.conv2\.bias and 1 more"):
        DACTokenizer(str(tmp_path), num_codebooks=3)


# arguments


@KINDS
def test_arguments_that_do_not_fit_are_refused(kind):
    lowest = 2 if kind is Encodec48kTokenizer else 1
    for count in (lowest - 1, 99):
        with pytest.raises(ValueError, match=rf"num_codebooks must be between {lowest} and \d+, got {count}"):
            tiny(kind, num_codebooks=count)
    with pytest.raises(ValueError, match="set pretrained to false"):
        kind(config=TINY[kind])
    with pytest.raises(ValueError, match=r"sizes of 'some/model' are not known without its weights.* one of \w+/"):
        kind("some/model", pretrained=False)


@KINDS
def test_random_weights_are_the_same_in_every_process(kind):
    audio = noise(1, 300)
    first, second, other = tiny(kind), tiny(kind), tiny(kind, seed=8)
    assert torch.equal(first.encode(audio).codes, second.encode(audio).codes)
    assert not torch.equal(first.encode(audio).codes, other.encode(audio).codes)


def test_a_model_for_another_tokenizer_is_refused():
    with pytest.raises(ValueError, match="or Encodec48kTokenizer"):
        EncodecTokenizer(pretrained=False, config=TINY[Encodec48kTokenizer])
    with pytest.raises(ValueError, match="take EncodecTokenizer"):
        Encodec48kTokenizer(pretrained=False, config=TINY[EncodecTokenizer])
    with pytest.raises(ValueError, match="not causal"):
        tiny(MimiTokenizer, use_causal_conv=False)


def test_names_of_released_models_know_their_sizes():
    from transformers import DacConfig, EncodecConfig, MimiConfig

    from fac_lightning.tokenizers import dac, encodec_48k

    found = [DacConfig(**sizes) for sizes in dac.RELEASED.values()]
    rates = [(config.sampling_rate, config.hop_length, config.n_codebooks) for config in found]
    assert rates == [(16000, 320, 12), (24000, 320, 32), (44100, 512, 9)]
    config = EncodecConfig(**encodec_48k.RELEASED)
    assert (config.num_quantizers, config.chunk_length, config.hop_length) == (16, 48000, 320)
    mimi = MimiConfig()
    assert (mimi.frame_rate, mimi.num_quantizers, mimi.codebook_size) == (12.5, 32, 2048)


def test_mimi_moves_with_its_codebooks():
    tokenizer, audio = tiny(MimiTokenizer), noise(1, 300)
    tokenizer.encode(audio)  # transformers keeps a copy of the codebooks from here on
    tokenizer.double()
    assert tokenizer.model.quantizer.decode(torch.zeros(1, 3, 2, dtype=torch.int64)).dtype == torch.float64
