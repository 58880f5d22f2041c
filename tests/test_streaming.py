"""Replies bit by bit: in a row the chunks are what `send` gives, speech comes as early as the tokenizer can."""

from dataclasses import replace

import pytest
import torch

from fac_lightning.detokenizers import ToneDetokenizer
from fac_lightning.generation import Decoding, Sampling, Session
from fac_lightning.prompts import ChatFormat
from fac_lightning.testing.tiny import tiny_speech_lm
from fac_lightning.tokenizers import MimiTokenizer
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms
from test_generation import VOCAB, CharTokenizer, ToneTokenizer

LIVELY = Sampling(temperature=1.0)
DECODING = Decoding(text=LIVELY, speech=LIVELY, max_positions=9, seed=3)


class Running(SpeechTokenizer):
    """Every sample is the sum of all codes so far, so a decoder without memory would be heard."""

    causal = True

    def __init__(self, first_chunk_frames=1):
        super().__init__()
        self.sample_rate, self.hop_length, self.codebook_size, self.num_codebooks = 1000, 40, 32, 1
        self.first_chunk_frames = first_chunk_frames

    def encode(self, audio, lengths=None):
        return SpeechCodes(torch.zeros(len(audio), 0, 1, dtype=torch.int64), torch.zeros(len(audio)))

    def decode(self, codes, lengths=None):
        audio = (codes[..., 0].cumsum(1) / 1000).repeat_interleave(self.hop_length, dim=1)
        return Waveforms(audio, lengths * self.hop_length, self.sample_rate)

    def new_decoder_state(self, batch_size):
        return {"sum": torch.zeros(batch_size, 1, dtype=torch.int64), "started": False}

    def decode_chunk(self, codes, state):
        assert state["started"] or codes.shape[1] >= self.first_chunk_frames
        sums = codes[..., 0].cumsum(1) + state["sum"]
        state |= {"sum": sums[:, -1:], "started": True}
        return (sums / 1000).repeat_interleave(self.hop_length, dim=1)


class Spoken(ToneTokenizer):
    """Has a detokenizer that speaks a frame late."""

    def __init__(self):
        super().__init__()
        self.detokenizer = ToneDetokenizer(1000, 40, 1, 32, low=50, high=400)

    def decode(self, codes, lengths=None):
        return self.detokenizer.decode(codes, lengths)


@pytest.fixture(scope="module")
def model():
    return tiny_speech_lm(vocab_size=VOCAB, seed=2).eval()


@pytest.fixture(scope="module")
def chat():
    return ChatFormat(CharTokenizer())


def sessions(model, chat, mode, tokenizer, decoding=DECODING):
    return [Session(model, chat, mode, "", tokenizer, decoding=decoding) for _ in range(2)]


def joined(chunks):
    """Text, codes and samples of chunks in a row."""
    codes = [chunk.codes for chunk in chunks if chunk.codes is not None]
    audio = [chunk.audio for chunk in chunks if chunk.audio is not None]
    text = "".join(chunk.text for chunk in chunks)
    return text, torch.cat(codes) if codes else None, torch.cat(audio) if audio else None


def same(one, other):
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), atol=1e-5)


TOKENIZERS = {
    "none": lambda: None,
    "causal": Running,
    "mirrors": lambda: Running(7),
    "late": Spoken,
    "whole": ToneTokenizer,
}


@pytest.fixture
def opens(model, chat, monkeypatch):
    """The model ends its chains sooner or later."""
    plain, bonus = model.backbone.logits, torch.zeros(VOCAB)
    bonus[chat.audio_bos] = 2.5
    monkeypatch.setattr(model.backbone, "logits", lambda hidden: plain(hidden) + bonus)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("mode", ["T2M", "T2T", "STC"])
def test_chunks_in_a_row_are_what_send_gives(model, chat, mode, kind, opens):
    streaming, sending = sessions(model, chat, mode, TOKENIZERS[kind](), replace(DECODING, max_positions=24))
    for _ in range(2):  # the second turn sees what the first left
        turn = {"audio": torch.ones(170)} if mode == "STC" else {"text": "hey"}
        chunks, reply = list(streaming.stream(**turn)), sending.send(**turn)
        assert all(chunk.reply is None for chunk in chunks[:-1])
        whole = chunks[-1].reply
        assert (whole.text, whole.text_ids, whole.finished) == (reply.text, reply.text_ids, reply.finished)
        assert (whole.chain, whole.sample_rate) == (reply.chain, reply.sample_rate)
        text, codes, audio = joined(chunks)
        assert text == reply.text
        assert same(codes, reply.codes)
        assert same(whole.codes, reply.codes)
        assert same(audio, reply.audio)
        assert same(whole.audio, reply.audio)
        assert mode == "T2T" or len(codes) > 5
    assert streaming.turns == sending.turns == 2


def test_a_chain_that_is_cut_says_nothing(model, chat):
    chunks = list(sessions(model, chat, "STC", Running())[0].stream(audio=torch.ones(170)))
    assert len(chunks) == 1
    assert len(chunks[0].reply.chain) == 9
    assert chunks[0].audio.numel() == chunks[0].reply.codes.numel() == 0


@pytest.mark.parametrize(("kind", "behind"), [("causal", 0), ("mirrors", 6), ("late", 1), ("whole", 10**6)])
def test_speech_is_heard_as_early_as_the_tokenizer_can(model, chat, kind, behind):
    session = sessions(model, chat, "T2M", TOKENIZERS[kind]())[0]
    said = heard = 0
    for chunk in session.stream(text="hey"):
        said, heard = said + 40 * len(chunk.codes), heard + len(chunk.audio)
        if chunk.reply is None and behind < 10**6:
            assert said - 40 * behind <= heard <= said
        elif chunk.reply is None:
            assert heard == 0
    assert said == heard > 200


def test_a_codec_of_transformers_speaks_by_chunks(model, chat):
    sizes = {"num_filters": 4, "hidden_size": 16, "codebook_size": 32, "codebook_dim": 8, "upsample_groups": 16}
    sizes |= {"vector_quantization_hidden_dimension": 8, "num_quantizers": 4, "num_hidden_layers": 1, "head_dim": 8}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
    tokenizer = MimiTokenizer(pretrained=False, num_codebooks=1, config=sizes)
    streaming, sending = sessions(model, chat, "T2M", tokenizer)
    chunks = list(streaming.stream(text="hey"))
    assert sum(chunk.audio.numel() > 0 for chunk in chunks) > 2
    assert same(joined(chunks)[2], sending.send(text="hey").audio)
    assert chunks[0].sample_rate == 24000


@pytest.mark.parametrize("mode", ["T2M", "T2T"])
def test_who_stops_listening_cuts_the_reply_there(model, chat, mode):
    streaming, sending = sessions(model, chat, mode, Running())
    stream = streaming.stream(text="hey")
    heard = [next(stream) for _ in range(3)]
    stream.close()
    sending.decoding = replace(DECODING, max_positions=3)
    assert joined(heard)[0] == sending.send(text="hey").text
    sending.decoding = DECODING
    assert streaming.send(text="and").text_ids == sending.send(text="and").text_ids


def test_one_reply_at_a_time(model, chat):
    session = sessions(model, chat, "T2M", None)[0]
    with pytest.raises(ValueError, match="nothing to answer"):
        session.stream()
    stream = session.stream(text="hey")
    next(stream)
    for other in (lambda: session.send(text="and"), lambda: next(session.stream(text="and"))):
        with pytest.raises(ValueError, match=r"still being said: take its stream to the end, or close\(\) it"):
            other()
    assert list(stream)[-1].reply is not None
    session.send(text="and")


def test_streaming_leaves_the_model_and_the_caller_as_they_were(model, chat):
    model.train()
    for _ in sessions(model, chat, "T2M", Running())[0].stream(text="hey"):
        assert model.training
        assert not torch.is_inference_mode_enabled()
    model.eval()


def test_a_character_of_several_tokens_comes_when_it_is_complete(model):
    class Halves(CharTokenizer):
        def decode(self, token_ids, skip_special_tokens=False):
            pairs = [token_ids[i : i + 2] for i in range(0, len(token_ids), 2)]
            return "".join(
                super(Halves, self).decode(pair) if len(pair) == 2 else "\N{REPLACEMENT CHARACTER}" for pair in pairs
            )

    chunks = list(sessions(model, ChatFormat(Halves()), "T2T", None, Decoding(max_positions=5))[0].stream(text="hey"))
    assert not any("\N{REPLACEMENT CHARACTER}" in chunk.text for chunk in chunks[:-1])
    assert joined(chunks)[0] == chunks[-1].reply.text
    assert chunks[0].text == ""
    assert len(chunks[1].text) == 2
