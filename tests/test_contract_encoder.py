"""The contract kit of encoders finds what is broken: one deliberately broken encoder for every clause."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fac_lightning.testing import FrameEncoder, check_encoder
from fac_lightning.types import SpeechFeatures


class Changed(FrameEncoder):
    """A correct encoder whose result a subclass changes."""

    def change(self, out: SpeechFeatures, audio: Tensor, lengths: Tensor | None) -> SpeechFeatures:
        return out

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        return self.change(super().forward(audio, lengths), audio, lengths)


class AnotherRate(Changed):
    @property
    def frame_rate(self) -> float:
        return 50.0


class ShortInts(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features, out.lengths.int())


class FloorFrames(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features, (out.lengths - 1).clamp(min=0))


class TooWide(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features.repeat(1, 1, 2), out.lengths)


class Integers(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures((100 * out.features).long(), out.lengths)


class NotANumber(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features / out.lengths[:, None, None], out.lengths)


class LeavesATail(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features + 1, out.lengths)


class NeedsLengths(Changed):
    def change(self, out, audio, lengths):
        return out if lengths is not None else SpeechFeatures(out.features, out.lengths - 1)


class NormalizesOverTheBatch(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features / out.features.abs().amax().clamp_min(1e-6), out.lengths)


class ReadsThePadding(Changed):
    def forward(self, audio, lengths=None):
        whole, kept = super().forward(audio).features, super().forward(audio, lengths).lengths
        inside = torch.arange(whole.shape[1]) < kept[:, None]
        return SpeechFeatures(whole * inside[..., None], kept)


class DividesByLoudness(Changed):
    def change(self, out, audio, lengths):
        inside = True if lengths is None else torch.arange(audio.shape[1]) < lengths[:, None]
        loudness = (audio.abs() * inside).amax(1)[:, None, None]
        return SpeechFeatures((out.features / loudness).where(out.lengths[:, None, None] > 0, 0.0), out.lengths)


class InventsAFrame(Changed):
    def change(self, out, audio, lengths):
        return SpeechFeatures(out.features, out.lengths if out.lengths.any() else out.lengths + 1)


class FillsNothing(Changed):
    def change(self, out, audio, lengths):
        return out if out.lengths.any() else SpeechFeatures(out.features + 1, out.lengths)


@pytest.mark.parametrize("name", ["sample_rate", "hop_length", "dim"])
@pytest.mark.parametrize("value", [0, 40.0, None])
def test_sizes(name: str, value: object) -> None:
    encoder = FrameEncoder()
    setattr(encoder, name, value)
    with pytest.raises(AssertionError, match=f"{name} must be a positive int, got {value!r}"):
        check_encoder(encoder)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (AnotherRate, "frame_rate must be sample_rate / hop_length"),
        (ShortInts, "lengths must be int64, got torch.int32"),
        (FloorFrames, r"must give ceil\(n / 40\)"),
        (TooWide, r"features must be \(B, T, dim\) = \(6, 7, 8\), got \(6, 7, 16\)"),
        (Integers, "features must be floats, got torch.int64"),
        (NotANumber, "features must be finite"),
        (LeavesATail, "features after a row's length must be zero"),
        (NeedsLengths, "without lengths every row is as long as the batch"),
        (NormalizesOverTheBatch, "padding changed frames of row"),
        (ReadsThePadding, "what stands after a row's length changed features"),
        (DividesByLoudness, "features of digital silence must be finite"),
        (InventsAFrame, "rows without samples must have no frames"),
        (FillsNothing, "rows without samples must be zero"),
    ],
)
def test_broken_encoders_are_caught(broken: type[Changed], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_encoder(broken())


def test_the_right_encoder_is_right() -> None:
    check_encoder(Changed())
