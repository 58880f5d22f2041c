"""A single-codebook speech codec at 25 Hz, small enough to be trained on a laptop.

Legend: B rows, S samples, T code frames (40 ms), U feature frames, M mel frames (10 ms).
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.tokenizers.blocks import ConvStack, FrameNorm
from fac_lightning.tokenizers.features import FeatureExtractor
from fac_lightning.tokenizers.griffin_lim import griffin_lim
from fac_lightning.tokenizers.mel import LogMel
from fac_lightning.tokenizers.quantizer import FiniteScalarQuantizer
from fac_lightning.types import SpeechCodes, SpeechFeatures, Waveforms

__all__ = ["FSQTokenizer"]

SHIPPED = Path(__file__).parent / "weights"


class FSQTokenizer(SpeechTokenizer):
    """Speech <-> 25 codes a second out of 3^8 = 6561, at 16 kHz.

    A convolutional encoder reads the frames of a frozen speech encoder (or the log-mel), a finite scalar quantiser
    of 8 numbers with 3 levels makes one code of every 40 ms, a convolutional decoder turns codes into Whisper's
    80-bin log-mel, and Griffin-Lim turns that into samples. The size of the code is that of S3Tokenizer v2 and v3
    (https://arxiv.org/abs/2412.10117), whose codes the released Fun-Audio-Chat speaks.

    The decoder knows one voice, the one it was trained on. Decoding needs no feature extractor.

    Args:
        features: Frozen encoder whose frames are quantised, at 16 kHz and a hop that divides 640 samples; ``None``
            reads the log-mel, or, with shipped weights made for an extractor, leaves decoding only.
        weights: Name of shipped weights ("fsq_heart"), a safetensors file, the run folder of a training, or ``None``
            for a fresh codec to be trained.
        encoder_dim: Width of the encoder.
        encoder_blocks: Convolution blocks of the encoder.
        dim: Width of the decoder at 25 Hz.
        num_blocks: Convolution blocks of the decoder at 25 Hz.
        mel_dim: Width of the decoder at 100 Hz.
        mel_blocks: Convolution blocks of the decoder at 100 Hz.
        griffin_lim_steps: Iterations of phase reconstruction.
    """

    sample_rate = 16000
    hop_length = 640
    num_codebooks = 1

    def __init__(
        self,
        features: nn.Module | None = None,
        weights: str | None = "fsq_heart",
        encoder_dim: int = 256,
        encoder_blocks: int = 2,
        dim: int = 320,
        num_blocks: int = 4,
        mel_dim: int = 160,
        mel_blocks: int = 3,
        griffin_lim_steps: int = 32,
    ) -> None:
        super().__init__()
        state = None if weights is None else _read_weights(weights)
        self.log_mel = LogMel()
        self.features = features
        if features is not None:
            features.requires_grad_(False)
            _check_features(cast(FeatureExtractor, features), self.sample_rate, self.hop_length)
        self.griffin_lim_steps = griffin_lim_steps
        self.mels_per_frame = self.hop_length // self.log_mel.hop_length
        reads = self.log_mel if features is None else cast(FeatureExtractor, features)
        self.features_per_frame = self.hop_length // reads.hop_length
        own_dim = self.features_per_frame * (reads.num_mels if isinstance(reads, LogMel) else reads.dim)
        self.stacked_dim = own_dim if state is None else _input_dim(state, str(weights))
        if features is not None and self.stacked_dim != own_dim:
            raise ValueError(
                f"weights {weights!r} read {self.stacked_dim} numbers per code frame, features give {own_dim} "
                f"({self.features_per_frame} frames of {features.dim}); pass the extractor "
                "that the weights were trained with"
            )
        self.can_encode = self.stacked_dim == own_dim
        self.feature_norm = FrameNorm(self.stacked_dim)
        self.encoder_in = nn.Linear(self.stacked_dim, encoder_dim)
        self.encoder = ConvStack(encoder_dim, encoder_blocks)
        self.quantizer = FiniteScalarQuantizer(8, 3)
        self.codebook_size = self.quantizer.codebook_size
        self.encoder_out = nn.Linear(encoder_dim, self.quantizer.num_dims)
        self.latent_norm = FrameNorm(self.quantizer.num_dims)
        self.decoder_in = nn.Linear(self.quantizer.num_dims, dim)
        self.decoder = ConvStack(dim, num_blocks, kernel_size=9)
        self.upsample = nn.Linear(dim, self.mels_per_frame * mel_dim)
        self.mel_decoder = ConvStack(mel_dim, mel_blocks)
        self.mel_out = nn.Linear(mel_dim, self.log_mel.num_mels)
        if state is not None:
            self._load(state, str(weights))

    # encoding

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, T, 1)`` of waveforms ``(B, S)`` at 16 kHz; ``lengths`` ``(B,)`` in samples.

        Raises:
            ValueError: If the weights were made for a feature extractor and none was passed.
        """
        if not self.can_encode:
            raise ValueError(
                "this FSQTokenizer has no feature extractor and can only decode; to encode, pass the one that its "
                "weights were trained with (for fsq_heart: features=fac_lightning.encoders.WhisperLayers())"
            )
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        frames = -(-lengths // self.hop_length)
        if audio.numel() == 0:
            return SpeechCodes(torch.zeros(audio.shape[0], 0, 1, dtype=torch.long, device=audio.device), frames)
        with torch.autocast(audio.device.type, enabled=False):  # half precision would move numbers across a level
            points = self.quantize(self.extract(audio.float(), lengths), frames)
        codes = self.quantizer.to_codes(points) * self.mask(frames, points.shape[1])[..., 0].long()
        return SpeechCodes(codes.unsqueeze(-1), frames)

    @torch.no_grad()
    def extract(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """What the encoder reads of ``(B, S)``: features or log-mel ``(B, U, D)``, zero after each length."""
        if self.features is not None:
            found: SpeechFeatures = self.features(audio, lengths)
            return found.features
        inside = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        mel: Tensor = self.log_mel(audio * inside)
        return mel * self.mask(-(-lengths // self.log_mel.hop_length), mel.shape[1])

    def quantize(self, features: Tensor, frames: Tensor) -> Tensor:
        """Grid points ``(B, T, 8)`` of features ``(B, U, D)``, differentiable; ``frames`` ``(B,)`` in code frames."""
        stacked = self.stack(features)
        mask = self.mask(frames, stacked.shape[1])
        hidden = self.encoder(self.encoder_in(self.feature_norm(stacked, mask)), mask)
        points: Tensor = self.quantizer(self.latent_norm(self.encoder_out(hidden), mask))
        return points

    def stack(self, features: Tensor) -> Tensor:
        """Lay the features of each code frame side by side: ``(B, U, D)`` to ``(B, T, stack * D)``."""
        padded = F.pad(features, (0, 0, 0, -features.shape[1] % self.features_per_frame))
        stacked: Tensor = padded.unflatten(1, (-1, self.features_per_frame)).flatten(2)
        return stacked

    # decoding

    @torch.no_grad()
    def decode(self, codes: Tensor, lengths: Tensor | None = None) -> Waveforms:
        """Waveforms ``(B, T * 640)`` of codes ``(B, T, 1)``; ``lengths`` ``(B,)`` in frames.

        Raises:
            ValueError: If a code is outside ``[0, 6561)``.
        """
        if lengths is None:
            lengths = torch.full((codes.shape[0],), codes.shape[1], device=codes.device)
        if codes.numel() == 0:
            return Waveforms(torch.zeros(codes.shape[0], 0, device=codes.device), lengths * 0, self.sample_rate)
        samples = lengths * self.hop_length
        with torch.autocast(codes.device.type, enabled=False):
            mel = self.decode_mel(self.quantizer.from_codes(codes[..., 0]), lengths)
            return Waveforms(self.vocode(mel, samples), samples, self.sample_rate)

    def decode_mel(self, points: Tensor, frames: Tensor) -> Tensor:
        """Log-mel ``(B, 4 T, 80)`` of grid points ``(B, T, 8)``, differentiable; ``frames`` ``(B,)``."""
        return self.refine(self.decode_frames(points, frames), frames)

    def decode_frames(self, points: Tensor, frames: Tensor) -> Tensor:
        """The decoder's hidden frames ``(B, T, dim)`` at 25 Hz of grid points ``(B, T, 8)``."""
        return cast(Tensor, self.decoder(self.decoder_in(points), self.mask(frames, points.shape[1])))

    def refine(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """Log-mel ``(B, 4 T, 80)`` of hidden frames ``(B, T, dim)``."""
        fine = self.upsample(hidden).unflatten(2, (self.mels_per_frame, -1)).flatten(1, 2)
        mask = self.mask(frames * self.mels_per_frame, fine.shape[1])
        return cast(Tensor, self.mel_out(self.mel_decoder(fine, mask)))

    @torch.no_grad()
    def vocode(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """Waveforms ``(B, M * 160)`` of log-mels ``(B, M, 80)``, zero after ``lengths`` ``(B,)`` in samples."""
        magnitudes = self.log_mel.magnitudes(mel)
        return griffin_lim(
            magnitudes, lengths, self.log_mel.window, self.log_mel.hop_length, num_steps=self.griffin_lim_steps
        )

    @staticmethod
    def mask(lengths: Tensor, num_frames: int) -> Tensor:
        """1 inside and 0 after each length, ``(B, num_frames, 1)``."""
        return (torch.arange(num_frames, device=lengths.device) < lengths[:, None]).unsqueeze(-1).float()

    def codec_state(self) -> dict[str, Tensor]:
        """The state dict without the feature extractor: what a weights file holds."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("features.")}

    def _load(self, state: dict[str, Tensor], weights: str) -> None:
        own = self.codec_state()
        wrong = sorted(
            name for name in own.keys() | state.keys() if name not in own or name not in state
            or own[name].shape != state[name].shape
        )  # fmt: skip
        if wrong:
            raise ValueError(
                f"weights {weights!r} do not fit this codec: {wrong[0]} and {len(wrong) - 1} more differ; pass the "
                "sizes of the recipe that trained them, or weights=None for a fresh codec"
            )
        self.load_state_dict(state, strict=False)


def _check_features(features: FeatureExtractor, sample_rate: int, hop_length: int) -> None:
    if features.sample_rate != sample_rate or hop_length % features.hop_length:
        raise ValueError(
            f"features must take {sample_rate} Hz and have a hop that divides {hop_length} samples, got "
            f"{features.sample_rate} Hz and a hop of {features.hop_length}"
        )


def _input_dim(state: dict[str, Tensor], weights: str) -> int:
    if "encoder_in.weight" not in state:
        raise ValueError(f"weights {weights!r} are not those of an FSQTokenizer: they hold no encoder_in.weight")
    return state["encoder_in.weight"].shape[1]


def _read_weights(weights: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    shipped = SHIPPED / f"{weights}.safetensors"
    path = shipped if shipped.is_file() else Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.safetensors"))) or "none"
        raise ValueError(f"weights {weights!r}: no such file, and not one of the shipped names ({names})")
    state = load_file(path)
    return {name: value.float() for name, value in state.items() if not name.startswith("features.")}
