"""The tokenizers' kit passes a faultless one and names the clause that each of the others breaks."""

import ast
import inspect
import sys
import traceback

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fac_lightning.testing import check_tokenizer
from fac_lightning.tokenizers import SpeechTokenizer
from fac_lightning.types import SpeechCodes, Waveforms

kit = sys.modules[check_tokenizer.__module__]
HOP, LEVELS = 40, 16


class Loudness(SpeechTokenizer):
    """The loudness of every 40 samples; spoken as a constant, in which half of the frame before still sounds."""

    sample_rate, hop_length, num_codebooks, codebook_size = 1000, HOP, 1, LEVELS
    causal = True

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        lengths = self.whole(audio) if lengths is None else lengths
        frames = -(-lengths // HOP)
        heard = self.inside(audio, lengths)
        codes = (F.pad(heard, (0, -audio.shape[1] % HOP)).unflatten(1, (-1, HOP)).abs().mean(2) * 150).long()
        codes = codes.clamp(max=LEVELS - 1) * (torch.arange(codes.shape[1]) < frames[:, None])
        return SpeechCodes(codes[..., None], frames)

    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        lengths = self.whole(codes) if lengths is None else lengths
        audio = self.speak(codes, torch.zeros(len(codes)))
        return Waveforms(audio * (torch.arange(audio.shape[1]) < lengths[:, None] * HOP), lengths * HOP, 1000)

    def new_decoder_state(self, batch_size: int) -> list[Tensor]:
        return [torch.zeros(batch_size)]

    def decode_chunk(self, codes: Tensor, state: list[Tensor]) -> Tensor:
        audio = self.speak(codes, state[0])
        state[0] = codes[:, -1, 0].float() if codes.shape[1] else state[0]
        return audio

    @staticmethod
    def speak(codes: Tensor, before: Tensor) -> Tensor:
        """Samples of codes ``(B, T, 1)`` after the codes ``(B,)``."""
        levels = torch.cat([before[:, None], codes[..., 0].float()], dim=1)
        return ((levels[:, 1:] + levels[:, :-1] / 2) / LEVELS).repeat_interleave(HOP, dim=1)

    @staticmethod
    def whole(rows: Tensor) -> Tensor:
        return torch.full((rows.shape[0],), rows.shape[1])

    @staticmethod
    def inside(audio: Tensor, lengths: Tensor) -> Tensor:
        return audio * (torch.arange(audio.shape[1]) < lengths[:, None])


FAULTS = {}  # what must be said -> the tokenizer that breaks it


def breaks(message):
    """Note a broken tokenizer under the message that the kit must give."""

    def note(kind):
        FAULTS[kind.__name__] = (kind, message)
        return kind

    return note


def changed(grid: SpeechCodes, codes: Tensor | None = None, lengths: Tensor | None = None) -> SpeechCodes:
    return SpeechCodes(grid.codes if codes is None else codes, grid.lengths if lengths is None else lengths)


def said(waves: Waveforms, audio: Tensor | None = None, lengths: Tensor | None = None, rate: int = 1000) -> Waveforms:
    return Waveforms(waves.audio if audio is None else audio, waves.lengths if lengths is None else lengths, rate)


# sizes


@breaks("hop_length must be a positive int, got 40.0")
class FractionalHop(Loudness):
    hop_length = 40.0


@breaks("codebook_size must be a positive int, got 0")
class NoCodes(Loudness):
    codebook_size = 0


@breaks("frame_rate must be sample_rate / hop_length")
class OtherFrameRate(Loudness):
    frame_rate = 24.0


@breaks("a whole number of samples at output_rate 1010")
class BrokenOutputRate(Loudness):
    output_rate = 1010


# encoding


@breaks("must give ceil")
class Floor(Loudness):
    def encode(self, audio, lengths=None):
        return changed(
            super().encode(audio, lengths), lengths=(self.whole(audio) if lengths is None else lengths) // HOP
        )


@breaks(r"codes must be \(B, T, Q\)")
class TwoDimensional(Loudness):
    def encode(self, audio, lengths=None):
        found = super().encode(audio, lengths)
        return changed(found, found.codes[..., 0])


@breaks("codes must be int64, got torch.int32")
class Narrow(Loudness):
    def encode(self, audio, lengths=None):
        found = super().encode(audio, lengths)
        return changed(found, found.codes.int())


@breaks(r"codes must lie in \[0, 16\), got 16 to")
class SpecialCodes(Loudness):
    def encode(self, audio, lengths=None):
        found = super().encode(audio, lengths)
        return changed(found, found.codes + LEVELS)


@breaks("codes after a row's length must be zero")
class CodesAfterTheEnd(Loudness):
    def encode(self, audio, lengths=None):
        found = super().encode(audio, lengths)
        return changed(found, found.codes + (torch.arange(found.codes.shape[1]) >= found.lengths[:, None])[..., None])


@breaks("without lengths every row is as long as the batch")
class LengthsOfTheSound(Loudness):
    def encode(self, audio, lengths=None):
        found = super().encode(audio, lengths)
        return found if lengths is not None else changed(found, lengths=found.lengths - 1)


@breaks("padding changed codes of row 1")
class RowStatistics(Loudness):
    def encode(self, audio, lengths=None):
        heard = self.inside(audio, self.whole(audio) if lengths is None else lengths)
        return super().encode(heard / heard.std(dim=1, keepdim=True).clamp(min=1e-6) * 0.1, lengths)


@breaks("padding changed codes of row 0")
class BatchStatistics(Loudness):
    def encode(self, audio, lengths=None):
        heard = self.inside(audio, self.whole(audio) if lengths is None else lengths)
        return super().encode(heard / heard.abs().max().clamp(min=1e-6) * 0.2, lengths)


@breaks("what stands after a row's length changed codes")
class ReadsPadding(Loudness):
    @staticmethod
    def inside(audio, lengths):
        return audio


@breaks("encode must leave the audio as it is")
class ChangesTheAudio(Loudness):
    def encode(self, audio, lengths=None):
        return super().encode(audio.mul_(0.9), lengths)


@breaks("encoding twice must give the same codes")
class Learns(Loudness):
    calls = 0

    def encode(self, audio, lengths=None):
        self.calls += 1
        found = super().encode(audio, lengths)
        return changed(found, found.codes // 2) if self.calls == 7 else found


# decoding


@breaks("decode must give output_rate")
class OtherRate(Loudness):
    def decode(self, codes, lengths=None):
        return said(super().decode(codes, lengths), rate=8000)


@breaks(r"T frames must decode to T \* hop_length samples")
class ShortLengths(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, lengths=waves.lengths - 1)


@breaks(r"audio must be \(B, T \* hop_length\)")
class ShortAudio(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, waves.audio[:, :-1])


@breaks("audio must be floating point, got torch.int16")
class Integers(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, (waves.audio * 32767).short())


@breaks("decoded audio must be finite")
class DividesByZero(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, waves.audio / waves.audio)


@breaks("decode must run without gradients")
class Differentiable(Loudness):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, waves.audio * self.gain)


@breaks("samples after a row's length must be zero")
class Rings(Loudness):
    def decode(self, codes, lengths=None):
        return said(super().decode(codes, lengths), super().decode(codes).audio)


@breaks("padding changed the samples of row 0")
class EvenLoudness(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, waves.audio / waves.audio.mean().clamp(min=1e-6)) if waves.audio.numel() else waves


@breaks("codes after a row's length changed its samples")
class HearsWhatFollows(Loudness):
    causal = False
    new_decoder_state, decode_chunk = SpeechTokenizer.new_decoder_state, SpeechTokenizer.decode_chunk

    def decode(self, codes, lengths=None):
        if lengths is None or len(codes) == 1:
            return super().decode(codes, lengths)
        waves = super().decode(codes, lengths)
        return said(waves, waves.audio + 0.1 * (codes[:, -1] == LEVELS - 1) * (waves.audio > 0))


@breaks("without lengths every row of codes is as long as the batch")
class ForgetsTheLast(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return waves if lengths is not None else said(waves, lengths=waves.lengths - HOP)


@breaks("decode must leave the codes as they are")
class ChangesTheCodes(Loudness):
    def decode(self, codes, lengths=None):
        return super().decode(codes.clamp_(max=3), lengths)


@breaks("decoding twice must give the same samples")
class Dithers(Loudness):
    def decode(self, codes, lengths=None):
        waves = super().decode(codes, lengths)
        return said(waves, waves.audio * (1 + 1e-6 * torch.randn(())))


@breaks("no frames must decode to no samples")
class AlwaysSaysSomething(Loudness):
    def decode(self, codes, lengths=None):
        return super().decode(codes if codes.shape[1] else torch.zeros(len(codes), 1, 1).long(), lengths)


# streaming


@breaks("chunks of .* gave other samples than decode")
class ForgetsBetweenChunks(Loudness):
    def decode_chunk(self, codes, state):
        return super().decode_chunk(codes, [torch.zeros(len(codes))])


@breaks("two streams at once disturbed each other")
class RemembersOnThePart(Loudness):
    def new_decoder_state(self, batch_size):
        self.state = super().new_decoder_state(batch_size)
        return self.state

    def decode_chunk(self, codes, state):
        if self.state[0].shape[0] != len(codes):
            self.state = [torch.zeros(len(codes))]
        return super().decode_chunk(codes, self.state)


@breaks(r"a chunk must give \(B, t \* hop_length\)")
class HoldsBack(Loudness):
    def decode_chunk(self, codes, state):
        return super().decode_chunk(codes, state)[:, :-1]


@breaks("decode_chunk must run without gradients")
class DifferentiableChunks(Loudness):
    def decode_chunk(self, codes, state):
        return super().decode_chunk(codes, state).requires_grad_()


@breaks("must refuse to decode chunks")
class StreamsAnyway(Loudness):
    causal = False


# silence


@breaks(r"silence_codes must be \(T, Q\) = \(3, 1\), got \(1, 3, 1\)")
class BatchOfSilence(Loudness):
    def silence_codes(self, num_frames):
        return super().silence_codes(num_frames)[None]


@breaks("silence_codes must be int64")
class FloatSilence(Loudness):
    def silence_codes(self, num_frames):
        return super().silence_codes(num_frames).float()


@breaks(r"silence_codes must lie in \[0, 16\)")
class PaddingAsSilence(Loudness):
    def silence_codes(self, num_frames):
        return super().silence_codes(num_frames) + LEVELS


@breaks("silence_codes must be the same each time")
class RandomSilence(Loudness):
    def silence_codes(self, num_frames):
        return torch.randint(LEVELS, (num_frames, 1))


def test_kit_passes_a_faultless_tokenizer():
    check_tokenizer(Loudness())


@pytest.mark.parametrize(("kind", "message"), FAULTS.values(), ids=FAULTS)
def test_kit_names_the_broken_clause(kind, message):
    with pytest.raises(AssertionError, match=message):
        check_tokenizer(kind())


def test_every_clause_of_the_kit_has_a_tokenizer_that_breaks_it():
    clauses = {
        node.lineno
        for node in ast.walk(ast.parse(inspect.getsource(kit)))
        if isinstance(node, ast.Assert | ast.Raise)
        or (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "same_samples")
    }
    broken = set()
    for kind, _ in FAULTS.values():
        with pytest.raises(AssertionError) as caught:
            check_tokenizer(kind())
        frames = [entry for entry in traceback.extract_tb(caught.tb) if entry.filename == kit.__file__]
        broken.add(frames[-1].lineno)
    lines = inspect.getsource(kit).splitlines()
    unbroken = [lines[number - 1].strip() for number in sorted(clauses - broken)]
    assert not unbroken
