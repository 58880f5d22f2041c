"""Speech tokens in the place of features: a model that hears without a continuous encoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.types import SpeechCodes, SpeechFeatures

__all__ = ["TokenizerEncoder"]

SIZES = ("sample_rate", "hop_length", "num_codebooks", "codebook_size")


class CodeMaker(Protocol):
    """What the encoder asks of ``tokenizer``; every ``SpeechTokenizer`` gives it."""

    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int

    def encode(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechCodes:
        """Codes ``(B, T, Q)`` of waveforms ``(B, S)``."""


class TokenizerEncoder(SpeechEncoder):
    """Let the model hear speech tokens and nothing else: the frames are a frozen tokenizer's codes, as float32.

    It goes with a feature adapter that embeds codes, such as ``fac_lightning.adapters.CodeFeatureGrouping``; a fresh
    embedding is then all that is learned of what the codes mean. Around it ``CachedEncoder`` keeps codes exactly. This
    is DrVoice without its continuous speech encoder (https://arxiv.org/abs/2506.09349, table 4).

    The tokenizer stays in ``eval``, without gradients and in the float type it came in: half precision would move
    numbers across the borders between codes. One that cannot encode is refused.

    Args:
        tokenizer: A ``SpeechTokenizer`` that can encode; rates and sizes are taken from it.
    """

    codebook_size: int

    def __init__(self, tokenizer: nn.Module) -> None:
        super().__init__()
        sizes = [getattr(tokenizer, name, None) for name in SIZES]
        if not callable(getattr(tokenizer, "encode", None)) or not all(isinstance(x, int) and x > 0 for x in sizes):
            told = ", ".join(f"{name} {size!r}" for name, size in zip(SIZES, sizes, strict=True))
            raise ValueError(
                f"tokenizer must be a SpeechTokenizer, which has encode() and sizes above 0; "
                f"{type(tokenizer).__name__} has {told}"
            )
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        maker = cast(CodeMaker, tokenizer)
        self.sample_rate, self.hop_length = maker.sample_rate, maker.hop_length
        self.dim, self.codebook_size = maker.num_codebooks, maker.codebook_size
        if not any(weight.is_meta for weight in self.state_dict().values()):
            self._codes(torch.zeros(1, self.hop_length + 1), torch.tensor([self.hop_length + 1]))

    @torch.no_grad()
    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Codes ``(B, T, dim)`` of waveforms ``(B, S)`` at ``sample_rate``, as float32; ``lengths`` in samples."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        lengths = lengths.to(audio.device)
        frames = -(-lengths // self.hop_length)
        rows = lengths.nonzero().squeeze(1)  # tokenizers owe nothing to a row without samples
        longest = -(-audio.shape[1] // self.hop_length)
        features = torch.zeros(audio.shape[0], longest, self.dim, device=audio.device)
        if len(rows):
            codes = self._codes(audio[rows], lengths[rows])
            features[rows, : codes.shape[1]] = codes.float()  # exact up to 2^24
        return SpeechFeatures(features, frames)

    def train(self, mode: bool = True) -> TokenizerEncoder:
        """Set the mode of this module; the tokenizer inside stays in ``eval``."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def _codes(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Codes ``(B, T, dim)`` int of rows that have samples.

        Raises:
            ValueError: The tokenizer cannot encode, or gives another grid than its sizes say.
        """
        codes = cast(CodeMaker, self.tokenizer).encode(audio, lengths).codes
        due = (audio.shape[0], -(-int(lengths.max()) // self.hop_length), self.dim)
        if codes.dim() != 3 or codes.shape[0] != due[0] or codes.shape[1] < due[1] or codes.shape[2] != due[2]:
            raise ValueError(
                f"{type(self.tokenizer).__name__} gave codes {tuple(codes.shape)}, but its hop of {self.hop_length} "
                f"samples and its {self.dim} codebooks make {due}; "
                "fac_lightning.testing.check_tokenizer shows the contract"
            )
        return codes[:, : due[1]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TokenizerEncoder:
        """Follow the model to its device, but not into another float type."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self
