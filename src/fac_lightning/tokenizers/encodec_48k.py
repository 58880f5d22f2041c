"""EnCodec's 48 kHz model for one voice: what scales and chunks do to its codes, undone by one more codebook."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fac_lightning.tokenizers.encodec_base import EncodecBase
from fac_lightning.tokenizers.pretrained import load_codec
from fac_lightning.types import SpeechCodes, Waveforms

__all__ = ["Encodec48kTokenizer"]

#: What makes the released model of transformers' EncodecConfig.
RELEASED = {
    "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
    "sampling_rate": 48000,
    "audio_channels": 2,
    "use_causal_conv": False,
    "norm_type": "time_group_norm",
    "normalize": True,
    "chunk_length_s": 1.0,
    "overlap": 0.01,
}
QUIETEST, LOUDEST = -100.0, 2.0  # dB of the first and the last level


class Encodec48kTokenizer(EncodecBase):
    """Codes of EnCodec at 48 kHz, 150 frames a second: the loudness, then residual codes out of 1024.

    The model is stereo and works on pieces of one second, each divided by its own root mean square, which it hands on
    beside the codes. Here mono goes through both channels, and that number is the first codebook: code 0 is digital
    silence, the others are levels from -100 to 2 dB, 0.1 dB apart. All frames of a piece have the same; where they do
    not, because a model spoke them, their median counts.

    Pieces do not overlap: with the 1 % that the released scripts mix they would be 148.5 frames apart, and ``n``
    samples would not give ``ceil(n / 320)`` frames. All other codes are those of the model for each piece.

    Args:
        name: Hub id or folder of the model.
        num_codebooks: The loudness and the residual codebooks used, the coarsest first (9 are 12 kbit/s).
        pretrained: Load weights of ``name``; if false they are drawn from ``seed``, for tests without a network.
        config: Arguments of transformers' ``EncodecConfig`` for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.
    """

    own_codebooks = 1
    least_codebooks = 2

    def __init__(
        self,
        name: str = "facebook/encodec_48khz",
        num_codebooks: int = 9,
        pretrained: bool = True,
        config: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        from transformers import EncodecModel

        model = load_codec(EncodecModel, name, pretrained, config, seed, {"facebook/encodec_48khz": RELEASED})
        settings = model.config
        hop, chunk = int(settings.hop_length), settings.chunk_length
        if not settings.normalize or chunk is None or chunk % hop:
            raise ValueError(
                f"{name!r} does not scale its input in chunks of whole frames, as facebook/encodec_48khz does: take "
                "EncodecTokenizer"
            )
        super().__init__(model, int(settings.sampling_rate), hop, num_codebooks)
        self.channels, self.piece_frames = int(settings.audio_channels), chunk // hop
        if not pretrained:
            self.draw(seed, self.channels)

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, ceil(S / hop_length), Q)`` of waveforms ``(B, S)``; ``lengths`` ``(B,)`` in samples."""
        pieces, counts, lengths = _cut(audio, lengths, self.piece_frames * self.hop_length)
        codes = super().encode(pieces, counts).codes.reshape(audio.shape[0], -1, self.num_codebooks)
        return SpeechCodes(codes[:, : self.num_frames(audio.shape[1])], -(-lengths // self.hop_length))

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * hop_length)`` of codes ``(B, T, q)`` with ``q`` from 2; ``lengths`` ``(B,)`` in frames.

        Raises:
            ValueError: If a code is outside ``[0, codebook_size)``.
        """
        pieces, counts, lengths = _cut(codes, lengths, self.piece_frames)
        audio = super().decode(pieces, counts).audio.reshape(codes.shape[0], -1)
        return Waveforms(audio[:, : codes.shape[1] * self.hop_length], lengths * self.hop_length, self.sample_rate)

    def encode_rows(self, audio: Tensor) -> Tensor:
        """Codes ``(B, T, Q)`` of pieces ``(B, T * hop_length)``."""
        volume = audio.square().mean(1, keepdim=True).sqrt()  # (B, 1)
        scaled = (audio / (volume + 1e-8))[:, None].expand(-1, self.channels, -1)
        codes = self.quantize(self.model.encoder(scaled))
        return torch.cat([self.level(volume)[:, None].expand(-1, codes.shape[1], -1), codes], dim=2)

    def decode_rows(self, codes: Tensor) -> Tensor:
        """Waveforms ``(B, T * hop_length)`` of pieces of codes ``(B, T, q)``."""
        audio: Tensor = self.model.decoder(self.embed(codes[..., 1:])).mean(1)
        return audio * self.volume(codes[..., 0].median(1, keepdim=True).values)

    def level(self, volume: Tensor) -> Tensor:
        """Codes of root mean squares, of the same shape."""
        steps = (self.codebook_size - 2) / (LOUDEST - QUIETEST)
        codes = ((20 * volume.clamp(min=1e-12).log10() - QUIETEST) * steps).round() + 1
        return codes.clamp(0, self.codebook_size - 1).long()

    def volume(self, level: Tensor) -> Tensor:
        """Root mean squares of codes, of the same shape."""
        steps = (self.codebook_size - 2) / (LOUDEST - QUIETEST)
        return 10 ** (((level - 1) / steps + QUIETEST) / 20) * (level > 0)


def _cut(rows: Tensor, lengths: Tensor | None, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces ``(B * n, size, ...)`` of rows ``(B, S, ...)``, the lengths of the pieces, and of the rows."""
    if lengths is None:
        lengths = torch.full((rows.shape[0],), rows.shape[1], device=rows.device)
    count = max(1, -(-rows.shape[1] // size))
    padded = rows.new_zeros(rows.shape[0], count * size, *rows.shape[2:])
    padded[:, : rows.shape[1]] = rows
    counts = lengths[:, None] - torch.arange(count, device=rows.device) * size
    return padded.unflatten(1, (count, size)).flatten(0, 1), counts.clamp(0, size).flatten(), lengths
