"""A model that hears speech tokens alone: codes as frames, exact all the way to the table that embeds them."""

import pytest
import torch
import yaml
from safetensors.torch import save_model
from torch import Tensor, nn

from fac_lightning.adapters import (
    CodeFeatureGrouping,
    ConcatCodeGrouping,
    ConcatGrouping,
    DigitFeatureGrouping,
    SumFusion,
)
from fac_lightning.cli.build import load_run
from fac_lightning.config import instantiate
from fac_lightning.encoders import CachedEncoder, MelEncoder, SpeechEncoder, TokenizerEncoder
from fac_lightning.heads import RefinedHead
from fac_lightning.models import SpeechLM
from fac_lightning.testing import check_adapter, check_encoder, tiny_backbone, tiny_batch
from fac_lightning.tokenizers import EncodecTokenizer, FiniteScalarQuantizer, FSQTokenizer, S3Tokenizer, SpeechTokenizer
from fac_lightning.types import SpeechCodes, SpeechFeatures, Waveforms, pad_code

SMALL_FSQ = {"weights": None, "encoder_dim": 16, "encoder_blocks": 1, "dim": 24, "num_blocks": 1, "mel_dim": 16}
TINY_ENCODEC = {
    "upsampling_ratios": [8, 5, 4, 2],
    "hidden_size": 16,
    "num_filters": 4,
    "num_lstm_layers": 1,
    "codebook_size": 32,
    "target_bandwidths": [1.5],
}


class Loudness(SpeechTokenizer):
    """The mean of a frame in as many steps as there are codes, once per codebook; ``gain`` is its only weight."""

    def __init__(self, codebook_size: int = 32, num_codebooks: int = 1, hop_length: int = 40, extra: int = 0) -> None:
        super().__init__()
        self.sample_rate, self.hop_length, self.extra = 1000, hop_length, extra
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.gain = nn.Parameter(torch.tensor(0.25))

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        lengths = torch.full((len(audio),), audio.shape[1]) if lengths is None else lengths
        frames = -(-lengths // self.hop_length)
        audio = nn.functional.pad(audio, (0, -audio.shape[1] % self.hop_length))
        audio = audio * (torch.arange(audio.shape[1]) < lengths[:, None])
        level = (audio.unflatten(1, (-1, self.hop_length)).mean(-1) * self.gain + 0.5).clamp(0, 1)
        codes = (level[..., None] * (self.codebook_size - 1)).round().long().expand(-1, -1, self.num_codebooks)
        inside = torch.arange(codes.shape[1]) < frames[:, None]
        return SpeechCodes(nn.functional.pad(codes * inside[..., None], (0, self.extra)), frames)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        raise NotImplementedError


TOKENIZERS = {
    "fsq": lambda: FSQTokenizer(**SMALL_FSQ),
    "encodec": lambda: EncodecTokenizer(pretrained=False, num_codebooks=3, config=TINY_ENCODEC),
    "loudness": lambda: Loudness(65536, num_codebooks=2),
}


@pytest.mark.parametrize("make", TOKENIZERS.values(), ids=TOKENIZERS)
def test_codes_as_frames_keep_the_encoders_contract(make):
    check_encoder(TokenizerEncoder(make()))


def test_cached_codes_keep_it_too(tmp_path):
    check_encoder(CachedEncoder(TokenizerEncoder(Loudness(65536, num_codebooks=2)), str(tmp_path)))


def test_frames_are_the_tokenizers_own_codes():
    tokenizer = FSQTokenizer(**SMALL_FSQ)
    encoder = TokenizerEncoder(tokenizer)
    assert (encoder.sample_rate, encoder.hop_length, encoder.dim) == (16000, 640, 1)
    assert (encoder.frame_rate, encoder.codebook_size) == (25, 6561)
    audio, lengths = torch.randn(2, 5000) * 0.1, torch.tensor([5000, 1300])
    expected, found = tokenizer.encode(audio, lengths), encoder(audio, lengths)
    assert torch.equal(found.features, expected.codes.float())
    assert torch.equal(found.lengths, expected.lengths)


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_cache_keeps_every_code_exactly(on_disk, tmp_path):
    tokenizer = Loudness(65536)
    codes = torch.cat([torch.arange(0, 65536, 97), torch.tensor([65535, 2049, 4097])])
    audio = ((codes / 65535 - 0.5) / 0.25).repeat_interleave(40)[None]
    expected = tokenizer.encode(audio).codes.float()
    assert len(expected.unique()) > 600
    for _ in range(2):  # computed, then from the folder by another run
        encoder = CachedEncoder(TokenizerEncoder(tokenizer), str(tmp_path) if on_disk else None)
        assert torch.equal(encoder(audio).features, expected)
        assert torch.equal(encoder(audio).features, expected)
    assert encoder.misses == (0 if on_disk else 1)


def test_other_tokenizers_have_a_cache_of_their_own():
    class Louder(Loudness):
        pass

    tokenizers = [Loudness(), Loudness(64), Loudness(num_codebooks=2), Loudness(hop_length=20), Louder()]
    names = {CachedEncoder(TokenizerEncoder(tokenizer)).fingerprint() for tokenizer in tokenizers}
    assert len(names) == len(tokenizers)


def test_the_tokenizer_stays_frozen_in_eval_and_in_single_precision():
    encoder = TokenizerEncoder(EncodecTokenizer(pretrained=False, num_codebooks=2, config=TINY_ENCODEC)).train()
    assert encoder.training
    assert not any(part.training for part in encoder.tokenizer.modules())
    assert not any(weight.requires_grad for weight in encoder.parameters())
    audio = torch.randn(1, 3200) * 0.1
    before = encoder(audio).features
    nn.ModuleDict({"model": encoder}).to(torch.bfloat16).half()
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder(audio).features, before)
    assert encoder.to("meta").tokenizer.sample_rate == 24000
    assert all(weight.is_meta for weight in encoder.parameters())


def test_what_cannot_give_codes_is_refused():
    with pytest.raises(ValueError, match=r"must be a SpeechTokenizer.*MelEncoder has .* codebook_size None"):
        TokenizerEncoder(MelEncoder(n_mels=20, dim=16, num_layers=1))
    with pytest.raises(ValueError, match="has no feature extractor and can only decode"):
        TokenizerEncoder(FSQTokenizer())
    with pytest.raises(ValueError, match="was built with weights=None and only speaks"):
        TokenizerEncoder(S3Tokenizer(weights=None))
    with pytest.raises(ValueError, match=r"Loudness gave codes \(1, 2, 2\), .* make \(1, 2, 1\)"):
        TokenizerEncoder(Loudness(extra=1))


# -- the adapter -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group_size", "num_codebooks", "embed_dim"), [(5, 1, None), (1, 1, None), (2, 3, 4)])
def test_the_adapter_keeps_the_contract(group_size, num_codebooks, embed_dim):
    check_adapter(CodeFeatureGrouping(16, group_size, 8, num_codebooks, embed_dim))


def test_it_embeds_like_the_adapter_of_codes():
    heard, said = CodeFeatureGrouping(16, 5, 8, num_codebooks=2), ConcatCodeGrouping(16, 5, 8, num_codebooks=2)
    heard.load_state_dict(said.state_dict())
    codes = torch.randint(16, (1, 12, 2))
    found = heard(codes.float(), torch.tensor([12])).features[0]
    groups = nn.functional.pad(codes, (0, 0, 0, 3), value=pad_code(16))[0].unflatten(0, (3, 5))
    torch.testing.assert_close(found, said(groups))


@pytest.mark.parametrize(("group_size", "num_codebooks"), [(5, 1), (2, 3)])
def test_the_adapter_of_digits_keeps_the_contract(group_size, num_codebooks):
    check_adapter(DigitFeatureGrouping(27, group_size, 8, num_codebooks))
    check_adapter(DigitFeatureGrouping(25, group_size, 8, num_codebooks, levels=5))


def test_digits_are_the_levels_of_the_quantiser():
    quantizer, adapter = FiniteScalarQuantizer(8, 3), DigitFeatureGrouping(6561, 1, 8)
    codes = torch.randint(6561, (50,))
    numbers = adapter.numbers(codes[None, :, None])[0].unflatten(1, (8, 3))
    assert torch.equal(numbers.argmax(-1), (quantizer.from_codes(codes) + 1).long())
    every = adapter.numbers(torch.arange(6561)[None, :, None])[0]
    torch.testing.assert_close(every.mean(0), torch.zeros(24), atol=1e-5, rtol=0)
    torch.testing.assert_close(every.var(0, unbiased=False), torch.ones(24), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("codebook_size", "levels"), [(1024, 3), (6560, 3), (1, 3), (16, 1)])
def test_codes_without_digits_are_refused(codebook_size, levels):
    with pytest.raises(ValueError, match=f"codebook_size {codebook_size} is no power of levels {levels}"):
        DigitFeatureGrouping(codebook_size, 5, 8, levels=levels)


@pytest.mark.parametrize("grouping", [CodeFeatureGrouping, DigitFeatureGrouping])
def test_dropout_and_jitter_touch_training_only(grouping):
    plain, noisy = grouping(27, 5, 8), grouping(27, 5, 8, dropout=0.5, jitter=4)
    noisy.load_state_dict(plain.state_dict())
    codes, lengths = torch.randint(27, (2, 20, 1)).float(), torch.tensor([20, 7])
    wanted = plain(codes, lengths).features
    torch.testing.assert_close(noisy.eval()(codes, lengths).features, wanted)
    late = noisy.train()
    late.dropout.p = 0.0
    found = [late(codes, lengths).features for _ in range(20)]
    assert any(torch.allclose(one, wanted) for one in found)
    assert not all(torch.allclose(one, wanted) for one in found)
    with pytest.raises(ValueError, match=r"between 0 and group_size - 1 \(4\), got 5"):
        grouping(27, 5, 8, jitter=5)
    with pytest.raises(ValueError, match="must be at least 1, got 27 and 0"):
        grouping(27, 5, 8, num_codebooks=0)


def test_floats_that_cannot_tell_codes_apart_are_refused():
    lengths = torch.tensor([5])
    with pytest.raises(ValueError, match=r"up to 6560 came as torch.float16, exact up to 2048 only"):
        CodeFeatureGrouping(6561, 5, 8)(torch.ones(1, 5, 1).half(), lengths)
    CodeFeatureGrouping(2049, 5, 8)(torch.ones(1, 5, 1).half(), lengths)
    CodeFeatureGrouping(6561, 5, 8)(torch.zeros(0, 0, 1).half(), lengths[:0])  # a line without speech


def test_the_kit_finds_frames_that_are_no_codes():
    class Halved(TokenizerEncoder):
        def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
            out = super().forward(audio, lengths)
            return SpeechFeatures(out.features * 0.3, out.lengths)

    with pytest.raises(AssertionError, match=r"codes must be whole numbers in \[0, 33\)"):
        check_encoder(Halved(Loudness(33)))


def test_the_kit_finds_a_codebook_that_is_ignored():
    class FirstOnly(CodeFeatureGrouping):
        def forward(self, features: Tensor, lengths: Tensor) -> SpeechFeatures:
            return super().forward(features * torch.tensor([1.0, 0.0]), lengths)

    with pytest.raises(AssertionError, match="frame 0, codebook 1 must matter"):
        check_adapter(FirstOnly(16, 2, 8, num_codebooks=2))


# -- in a model --------------------------------------------------------------------------------------------------------


def hears_codes(encoder: SpeechEncoder, adapter: nn.Module) -> SpeechLM:
    return SpeechLM(
        backbone=tiny_backbone(),
        head=RefinedHead(16, 5, 32, width=16, num_layers=1, num_heads=2),
        encoder=encoder,
        feature_adapter=adapter,
        code_adapter=ConcatCodeGrouping(32, 5, 16),
        fusion=SumFusion(),
    )


def test_a_model_learns_from_what_it_hears_as_codes():
    model = hears_codes(CachedEncoder(TokenizerEncoder(Loudness())), CodeFeatureGrouping(32, 5, 16))
    assert (model.geometry.sample_rate, model.geometry.samples_per_position) == (1000, 200)
    batch = tiny_batch(model)
    output = model(batch)
    (output.text_loss_sum + output.speech_loss_sum).backward()
    assert model.feature_adapter.embed.table.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in model.encoder.parameters())
    silent = model.hear(torch.zeros(1, 400), torch.tensor([400]))
    assert not torch.allclose(silent, model.hear(torch.ones(1, 400), torch.tensor([400])))


def test_a_run_in_half_precision_still_hears_the_same_codes(tmp_path):
    part = "fac_lightning.{}"
    node = {
        "_target_": part.format("models.SpeechLM"),
        "backbone": {"_target_": part.format("testing.tiny_backbone")},
        "encoder": {
            "_target_": part.format("encoders.TokenizerEncoder"),
            "tokenizer": {"_target_": part.format("tokenizers.FSQTokenizer"), **SMALL_FSQ},
        },
        "feature_adapter": {
            "_target_": part.format("adapters.CodeFeatureGrouping"),
            **{"codebook_size": 6561, "group_size": 5, "dim": 16},
        },
    }
    trained = instantiate(node, "model").to(torch.bfloat16)
    save_model(trained, str(tmp_path / "model.safetensors"))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": node}))
    loaded = load_run(tmp_path, allow=["fac_lightning.testing."]).model
    assert {weight.dtype for weight in loaded.encoder.parameters()} == {torch.float32}
    assert {weight.dtype for weight in (*loaded.backbone.parameters(), *loaded.feature_adapter.parameters())} == {
        torch.bfloat16
    }
    audio, lengths = torch.randn(1, 6400) * 0.1, torch.tensor([6400])
    assert torch.equal(loaded.encoder(audio, lengths).features, trained.encoder(audio, lengths).features)
    assert torch.equal(loaded.hear(audio, lengths), trained.eval().hear(audio, lengths))


@pytest.mark.parametrize(
    ("encoder", "adapter", "message"),
    [
        (TokenizerEncoder(Loudness()), ConcatGrouping(1, 5, 16), "ConcatGrouping would read as quantities"),
        (MelEncoder(20, 1, 1), CodeFeatureGrouping(32, 5, 16), "embeds codes, but encoder MelEncoder gives features"),
        (TokenizerEncoder(Loudness()), CodeFeatureGrouping(16, 5, 16), r"codebook_size \(16\) != .*set .* to 32"),
        (TokenizerEncoder(Loudness(32, 2)), CodeFeatureGrouping(32, 5, 16), r"set .*\.num_codebooks to 2"),
    ],
)
def test_parts_that_do_not_speak_of_the_same_codes_are_refused(encoder, adapter, message):
    with pytest.raises(ValueError, match=message):
        hears_codes(encoder, adapter)
