"""Detokenizers keep their contract, CosyVoice is called as the released scripts call it, and replies are heard."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_model
from torch import Tensor

from fac_lightning.cli import main
from fac_lightning.cli.build import build_model
from fac_lightning.config import loads
from fac_lightning.detokenizers import CosyVoice3Detokenizer, SpeechDetokenizer, ToneDetokenizer
from fac_lightning.detokenizers.tone import ToneState
from fac_lightning.generation import Decoding, Generator, UserTurn
from fac_lightning.prompts import ChatFormat
from fac_lightning.testing import check_detokenizer, check_tokenizer, tiny_speech_lm
from fac_lightning.text_tokenizer import train_text_tokenizer
from fac_lightning.tokenizers import S3Tokenizer
from fac_lightning.tokenizers.s3_base import S3Base
from fac_lightning.types import Waveforms, eos_code
from fac_lightning.weights import CheckpointError

# the reference part


@pytest.mark.parametrize(
    "sizes",
    [{}, {"num_codebooks": 3, "codebook_size": 12, "sample_rate": 8000, "hop_length": 321}],
    ids=["s3", "small"],
)
def test_tones_keep_the_contract_to_the_bit(sizes):
    check_detokenizer(ToneDetokenizer(**sizes), exact=True, atol=0)


def test_a_steady_code_has_its_pitch():
    part = ToneDetokenizer(sample_rate=16000, hop_length=640, codebook_size=3, low=250.0, high=4000.0)
    for code, pitch in enumerate((250, 1000, 4000)):
        audio = part.decode(torch.full((1, 25, 1), code)).audio[0]
        assert int(torch.fft.rfft(audio).abs().argmax()) == pitch  # one second, so bins are Hz


def test_tones_glide_without_steps():
    part = ToneDetokenizer(codebook_size=64, low=100.0, high=400.0)
    audio = part.decode(torch.randint(64, (1, 50, 1))).audio[0]
    assert audio.diff().abs().max() < 0.3 * 2 * torch.pi * 400 / 24000 * 1.1


@pytest.mark.parametrize("call", ["decode", "stream"])
def test_what_is_no_code_is_refused(call):
    part = ToneDetokenizer(codebook_size=8)

    def say(codes: Tensor) -> None:
        part.decode(codes[None]) if call == "decode" else part.stream(codes, part.new_state())

    with pytest.raises(ValueError, match=r"\[0, 8\), got 3 to 9; cut off special codes"):
        say(torch.tensor([[3], [eos_code(8)]]))
    with pytest.raises(ValueError, match="2 codebooks, ToneDetokenizer speaks 1"):
        say(torch.zeros(3, 2, dtype=torch.long))


def test_an_utterance_ends_once():
    part = ToneDetokenizer()
    state = part.new_state()
    part.stream(torch.zeros(1, 1, dtype=torch.long), state, final=True)
    with pytest.raises(ValueError, match="has ended; new_state"):
        part.stream(torch.zeros(1, 1, dtype=torch.long), state)


def test_tones_above_half_the_rate_are_refused():
    with pytest.raises(ValueError, match="high < 4000 Hz, got low 150 and high 5000"):
        ToneDetokenizer(sample_rate=8000, high=5000.0)


# the kit


class Broken(ToneDetokenizer):
    """The reference part with one clause spoiled."""

    def __init__(self, fault: str) -> None:
        super().__init__(codebook_size=16)
        self.fault, self.shared = fault, ToneDetokenizer.new_state(self)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        whole = super().decode(codes, None if self.fault == "rings" else lengths)
        if self.fault == "rings" and lengths is not None:
            return Waveforms(whole.audio, lengths * self.hop_length, self.sample_rate)
        if self.fault == "loudest" and codes.numel():
            return Waveforms(whole.audio / whole.audio.mean(), whole.lengths, self.sample_rate)
        if self.fault == "gradients":
            whole.audio.requires_grad_()
        return whole

    def new_state(self) -> ToneState:
        state = super().new_state()
        if self.fault == "shared":
            self.shared.held, self.shared.phase, self.shared.ended = state.held, state.phase, False
            return self.shared
        return state

    def stream(self, codes: Tensor, state: ToneState, final: bool = False) -> Tensor:
        if self.fault == "restarts":
            state.phase = state.phase * 0
        said = super().stream(codes, state, final and self.fault not in ("loses the end", "shared"))
        return said[None] if self.fault == "rows" else said


def test_kit_passes_a_faultless_part():
    check_detokenizer(Broken("none"), exact=True, atol=0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("rings", "after a row's length must be zero"),
        ("loudest", "padding changed the samples"),
        ("gradients", "decode must run without gradients"),
        ("loses the end", "what is held back must be spoken"),
        ("shared", "what is held back must be spoken|disturb"),
        ("restarts", "other samples than one piece"),
        ("rows", r"must give samples \(S,\)"),
    ],
)
def test_kit_names_the_broken_clause(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_detokenizer(Broken(fault), exact=True)


def test_kit_leaves_the_part_as_it_was():
    part = ToneDetokenizer().train()
    check_detokenizer(part)
    assert part.training


# CosyVoice


class Engine:
    """What the adapter touches of CosyVoice 3: two mels of a value per code, a vocoder that looks four mels ahead."""

    def __init__(self) -> None:
        self.flow = SimpleNamespace(decoder=SimpleNamespace(estimator=SimpleNamespace(static_chunk_size=0)))
        self.hift_cache_dict: dict[str, dict | None] = {}
        self.calls: list[SimpleNamespace] = []
        self.surplus = 0  # samples that the vocoder gives too many

    @torch.inference_mode()
    def token2wav(
        self, token, prompt_token, prompt_feat, embedding, token_offset, uuid, stream=False, finalize=False, speed=1.0
    ):
        assert token.dim() == 2
        assert token.dtype == prompt_token.dtype == torch.int32
        assert (prompt_token.shape, prompt_feat.shape, embedding.shape) == ((1, 0), (1, 0, 80), (1, 192))
        assert (stream, speed) == (False, 1.0)
        cache = self.hift_cache_dict[uuid]
        self.calls.append(
            SimpleNamespace(
                tokens=token[0].tolist(), offset=token_offset, finalize=finalize, key=uuid,
                voice=float(embedding[0, 0]), past=None if cache is None else cache["mel"].shape[2],
            )
        )  # fmt: skip
        seen = token if finalize else token[:, :-3]
        mel = (seen.float() / 6561).repeat_interleave(2, 1)[None, :, token_offset * 2 :].expand(1, 80, -1)
        past = {"mel": mel[:, :, :0], "speech_offset": 0} if cache is None else cache
        mel = torch.cat([past["mel"], mel], 2)
        spoken = mel[0, 0] if finalize else mel[0, 0, :-4]
        speech = spoken.repeat_interleave(480)[None, past["speech_offset"] :]
        self.hift_cache_dict[uuid] = {"mel": mel, "speech_offset": past["speech_offset"] + speech.shape[1]}
        return torch.nn.functional.pad(speech, (0, self.surplus if finalize else 0))


@pytest.fixture
def voices(tmp_path):
    path = tmp_path / "new_spk2info.pt"
    torch.save({"中文女": {"embedding": torch.ones(1, 192)}, "中文男": {"embedding": torch.zeros(1, 192)}}, path)
    return path


@pytest.fixture
def cosyvoice(monkeypatch, voices):
    """A stand-in for the package ``cosyvoice``; ``.built`` are the arguments it was built with."""
    inner, top, cli = (ModuleType(name) for name in ("cosyvoice.cli.cosyvoice", "cosyvoice", "cosyvoice.cli"))
    inner.built = []

    class CosyVoice3:
        sample_rate = 24000

        def __init__(self, model_dir, load_trt=False, load_vllm=False, fp16=False):
            inner.built.append((model_dir, load_trt, load_vllm, fp16))
            self.model = Engine()

    inner.CosyVoice3 = CosyVoice3
    for module in (top, cli, inner):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return inner


@pytest.fixture
def part(cosyvoice, voices) -> CosyVoice3Detokenizer:
    return CosyVoice3Detokenizer(model=str(voices.parent))


def ramp(count: int) -> Tensor:
    """Codes ``(count, 1)`` that tell their place."""
    return torch.arange(count)[:, None] % 6561


def calls(part: CosyVoice3Detokenizer) -> list[tuple[int, int, int, bool]]:
    """First code, how many, offset and finalize of every call."""
    return [(call.tokens[0], len(call.tokens), call.offset, call.finalize) for call in part.cosyvoice.model.calls]


def test_cosyvoice_keeps_the_contract(part):
    assert (part.sample_rate, part.hop_length, part.frame_rate) == (24000, 960, 25)
    check_detokenizer(part, num_frames=130, exact=True, atol=0)
    assert not part.cosyvoice.model.hift_cache_dict  # nothing of an utterance stays behind


def test_cosyvoice_is_built_as_released(part, cosyvoice, voices):
    assert cosyvoice.built == [(str(voices.parent), False, False, False)]
    assert part.cosyvoice.model.flow.decoder.estimator.static_chunk_size == 1500
    CosyVoice3Detokenizer(model="somewhere/else", speakers=str(voices), fp16=True)
    assert cosyvoice.built[1] == ("somewhere/else", False, False, True)


@pytest.mark.parametrize(
    ("frames", "pieces"),
    [
        (0, []),
        (1, [1]),
        (750, [750]),
        (753, [376, 377]),
        (799, [399, 400]),
        (800, [750, 50]),
        (1520, [750, 385, 385]),
    ],
)
def test_one_piece_is_cut_as_released(part, frames, pieces):
    waves = part.decode(ramp(frames)[None])
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    assert calls(part) == [(start, count, 0, True) for start, count in zip(starts, pieces, strict=True)]
    assert len({call.key for call in part.cosyvoice.model.calls}) == len(pieces)
    assert waves.lengths.tolist() == [frames * 960]
    torch.testing.assert_close(waves.audio[0], ramp(frames)[:, 0].repeat_interleave(960) / 6561)


@pytest.mark.parametrize("chunk", [1, 5, 7, 700])
def test_streaming_follows_the_released_chunk_rule(part, chunk):
    """15 at a time with 3 to look ahead; the window loses its first 200 frames at offset 210."""
    codes, state, said = ramp(478), part.new_state(), []
    for start in range(0, len(codes), chunk):
        said.append(part.stream(codes[start : start + chunk], state, start + chunk >= len(codes)))
    expected, first, offset = [], 0, 0
    while first + offset + 18 <= 478:
        expected.append((first, offset + 18, offset, False))
        offset += 15
        if offset >= 200:
            first, offset = first + 200, offset - 200
    expected.append((first, 478 - first, offset, True))
    assert calls(part) == expected
    assert [call[2] for call in expected[:16]] == [*range(0, 210, 15), 10, 25]
    assert len({call.key for call in part.cosyvoice.model.calls}) == 1
    torch.testing.assert_close(torch.cat(said), codes[:, 0].repeat_interleave(960) / 6561)


def test_streaming_speaks_as_soon_as_it_may(part):
    state = part.new_state()
    assert part.stream(ramp(17), state).numel() == 0
    assert part.stream(ramp(18)[17:], state).numel() == (15 * 2 - 4) * 480  # the vocoder looks ahead too
    assert part.stream(ramp(18)[:0], state, final=True).numel() == (3 * 2 + 4) * 480


@pytest.mark.parametrize("left", [1, 2, 3, 4])
def test_the_last_frames_are_spoken_however_few(part, left):
    """The released server drops up to four of them."""
    state, codes = part.new_state(), ramp(15 + left)
    said = torch.cat([part.stream(codes, state), part.stream(codes[:0], state, final=True)])
    torch.testing.assert_close(said, codes[:, 0].repeat_interleave(960) / 6561)


def test_the_vocoders_past_is_cut_without_losing_what_it_owes(part):
    codes, state = ramp(2000), part.new_state()
    said = torch.cat([part.stream(codes, state), part.stream(codes[:0], state, final=True)])
    torch.testing.assert_close(said, codes[:, 0].repeat_interleave(960) / 6561)
    past = [call.past for call in part.cosyvoice.model.calls]
    assert past[0] is None
    assert max(past[1:]) <= 2 * 615
    assert past.count(54) == 3  # 50 mels of context and the 4 that were not spoken, after every 600 frames
    assert part.stream(codes[:0], part.new_state(), final=True).numel() == 0


def test_a_vocoders_edge_is_trimmed_and_another_rate_is_refused(part):
    part.cosyvoice.model.surplus = 7
    assert part.decode(ramp(20)[None]).audio.shape == (1, 20 * 960)
    part.cosyvoice.model.surplus = -7
    assert part.decode(ramp(20)[None]).audio.shape == (1, 20 * 960)
    part.cosyvoice.model.surplus = 2000
    with pytest.raises(RuntimeError, match="gave 21200 samples where 19200 are due at 24000 Hz"):
        part.decode(ramp(20)[None])
    assert not part.cosyvoice.model.hift_cache_dict


def test_a_voice_is_chosen_by_name(cosyvoice, voices, tmp_path):
    part = CosyVoice3Detokenizer(speakers=str(voices), voice="中文男")
    part.decode(ramp(3)[None])
    assert part.cosyvoice.model.calls[0].voice == 0
    with pytest.raises(CheckpointError, match="no voice 'Anna'; it has '中文女', '中文男'"):
        CosyVoice3Detokenizer(speakers=str(voices), voice="Anna")
    with pytest.raises(CheckpointError, match=r"no file of voices .*take utils/new_spk2info\.pt"):
        CosyVoice3Detokenizer(model=str(tmp_path / "absent"))
    (tmp_path / "broken.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"broken\.pt' cannot be read"):
        CosyVoice3Detokenizer(speakers=str(tmp_path / "broken.pt"))


def test_an_absent_cosyvoice_is_named_in_one_line(voices, monkeypatch):
    monkeypatch.setitem(sys.modules, "cosyvoice", None)
    with pytest.raises(ImportError, match=r"not on PyPI: git clone --recursive .*PYTHONPATH") as caught:
        CosyVoice3Detokenizer(speakers=str(voices))
    assert "\n" not in str(caught.value)


def test_an_ended_utterance_and_special_codes_are_refused(part):
    state = part.new_state()
    part.stream(ramp(1), state, final=True)
    with pytest.raises(ValueError, match="has ended"):
        part.stream(ramp(1), state)
    with pytest.raises(ValueError, match="special codes"):
        part.stream(torch.tensor([[eos_code(6561)]]), part.new_state())


# through the tokenizer's door


class Loudness(S3Base):
    """An S3 tokenizer that needs no weights."""

    def quantize(self, mels: Tensor, lengths: Tensor) -> Tensor:
        return ((mels[:, :, ::4].mean(1) + 2) * 1000).long()


def test_a_tokenizer_with_a_detokenizer_keeps_the_tokenizers_contract(part):
    check_tokenizer(Loudness(ToneDetokenizer()))
    check_tokenizer(Loudness(ToneDetokenizer(sample_rate=16000, hop_length=640)))
    with pytest.raises(ValueError, match="S3 gives"):
        Loudness(ToneDetokenizer(hop_length=480))
    waves = Loudness(part).decode(ramp(4)[None])
    assert (waves.sample_rate, waves.audio.shape) == (24000, (1, 3840))


def test_every_detokenizer_is_one():
    assert issubclass(CosyVoice3Detokenizer, SpeechDetokenizer)
    assert issubclass(ToneDetokenizer, SpeechDetokenizer)


def test_replies_are_heard_at_the_detokenizers_rate(tmp_path):
    text_tokenizer = train_text_tokenizer(["What is one plus one? Two."], vocab_size=300, folder=tmp_path / "tokenizer")
    model = tiny_speech_lm(vocab_size=len(text_tokenizer), codebook_size=6561).eval()
    tokenizer = S3Tokenizer(weights=None, detokenizer=ToneDetokenizer())
    generator = Generator(model, ChatFormat(text_tokenizer), tokenizer)
    for reply in generator.generate([UserTurn("one"), UserTurn("two")], "T2M", Decoding(max_positions=4)):
        assert reply.sample_rate == 24000
        assert len(reply.codes) > 0
        assert len(reply.audio) == len(reply.codes) * 960
        torch.testing.assert_close(reply.audio, ToneDetokenizer().decode(reply.codes[None]).audio[0])


RUN = """
model:
  _target_: fac_lightning.models.SpeechLM
  backbone:
    _target_: fac_lightning.backbones.HFBackbone
    pretrained: false
    config: {model_type: qwen3, vocab_size: VOCAB, hidden_size: 16, intermediate_size: 32, head_dim: 8,
      num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, tie_word_embeddings: true}
  code_adapter: {_target_: fac_lightning.adapters.ConcatCodeGrouping, codebook_size: 6561, group_size: 5, dim: 16}
  fusion: {_target_: fac_lightning.adapters.SumFusion}
  head: {_target_: fac_lightning.heads.RefinedHead, dim: 16, group_size: 5, codebook_size: 6561, width: 16,
    num_layers: 1, num_heads: 2}
tokenizer:
  _target_: fac_lightning.tokenizers.S3Tokenizer
  weights: null
  detokenizer: {_target_: fac_lightning.detokenizers.ToneDetokenizer}
data: {}
"""


def test_chat_writes_what_the_detokenizer_says(tmp_path, capsys):
    text_tokenizer = train_text_tokenizer(["one plus one"], vocab_size=300, folder=tmp_path / "text_tokenizer")
    text = RUN.replace("VOCAB", str(len(text_tokenizer)))
    (tmp_path / "recipe.yaml").write_text(text)
    save_model(build_model(loads(text, "recipe").tree["model"]), str(tmp_path / "model.safetensors"))
    answer = tmp_path / "answer.wav"
    assert main(["chat", str(tmp_path), "--text", "one", "--out", str(answer), "--max-positions", "3"]) == 0
    audio, rate = soundfile.read(answer)
    assert rate == 24000
    assert len(audio) % 960 == 0
    assert np.abs(audio).max() > 0.2
    assert "s of speech" in capsys.readouterr().out


def test_the_command_line_lists_the_slot(capsys):
    assert main(["list", "detokenizer"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("SpeechDetokenizer  (base class") < shown.index("fac_lightning.detokenizers.ToneDetokenizer")
    assert "fac_lightning.detokenizers.CosyVoice3Detokenizer" in shown
