"""The log-mel that S3 tokenizers read: Whisper's, of ragged batches, each clip as if it were alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.mel import mel_filters

__all__ = ["S3LogMel"]


class S3LogMel(nn.Module):
    """Whisper's 128-bin log-mel of 16 kHz audio, one frame every 10 ms (https://arxiv.org/abs/2212.04356).

    Mirrored at the ends of the clip and cut 8 below its loudest bin, as in the original; a rest shorter than 10 ms
    gives no frame. Unlike :class:`LogMel`, a frame therefore depends on the whole clip.
    """

    sample_rate = 16000
    hop_length = 160
    n_fft = 400
    num_mels = 128
    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = mel_filters(self.num_mels, self.n_fft, self.sample_rate)
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def forward(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mels ``(B, 128, M)``, zero after each length, and their lengths ``(B,)`` in frames.

        Args:
            audio: ``(B, S)``; what stands after a row's length is not read.
            lengths: ``(B,)`` in samples, each more than ``n_fft / 2``: less cannot be mirrored.
        """
        frames = lengths // self.hop_length
        count, half = int(frames.max()), self.n_fft // 2
        # Frame t is centred on sample t * hop; places before the first and after the last sample are mirrored there.
        place = torch.arange(-half, (count - 1) * self.hop_length + half, device=audio.device).abs()
        last = (lengths - 1)[:, None]
        mirrored = (last - (last - place).abs()).clamp(min=0)  # negative only where a shorter row has no frame
        spectrum = torch.stft(
            audio.gather(1, mirrored),
            self.n_fft,
            self.hop_length,
            window=self.window,
            center=False,
            return_complex=True,
        )  # (B, F, M)
        mel = (self.filters @ spectrum.abs().square()).clamp(min=1e-10).log10()
        there = (torch.arange(count, device=audio.device) < frames[:, None])[:, None]  # (B, 1, M)
        loudest = mel.masked_fill(~there, -torch.inf).amax((1, 2), keepdim=True)
        return ((torch.maximum(mel, loudest - 8) + 4) / 4).masked_fill(~there, 0), frames
