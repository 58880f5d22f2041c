"""A frozen encoder that remembers what it has said of every clip."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.encoders.feature_store import KEY_BYTES, FeatureStore
from fac_lightning.types import SpeechFeatures

__all__ = ["CachedEncoder"]

_SAMPLES_PER_WEIGHT = 4096  # values of each weight that enter the fingerprint


class CachedEncoder(SpeechEncoder):
    """Run a frozen encoder once per clip: from the second epoch on its features are looked up.

    A clip is known by the content of its samples, so order, batching and file names do not matter; audio that is
    changed at random every epoch (noise, speed) never repeats, so data with ``augment`` refuse this encoder. Features
    are kept and given out at half precision, the first time too, so a run with a warm cache equals one with a cold
    cache. They take ``2 * dim * frame_rate`` bytes a second of speech: 138 MB an hour for Whisper tiny. Frames that are
    codes are kept exactly, in single precision.

    The inner encoder stays in ``eval`` and without gradients, and its weights stay in the ``state_dict``. Changed
    weights get a cache of their own.

    Args:
        encoder: The encoder to freeze.
        folder: Where features are kept between runs; ``None`` keeps them in memory.
    """

    remembers = True

    def __init__(self, encoder: SpeechEncoder, folder: str | None = None) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.folder = folder
        self.sample_rate, self.hop_length, self.dim = encoder.sample_rate, encoder.hop_length, encoder.dim
        self.codebook_size = encoder.codebook_size
        self._store: FeatureStore | None = None
        self._fingerprint: str | None = None
        self._seen: tuple[tuple[int, int], ...] = ()  # address and version of every weight at the last forward
        self.hits, self.misses = 0, 0

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)`` at ``sample_rate``; ``lengths`` ``(B,)`` in samples."""
        if any(weight.requires_grad for weight in self.encoder.parameters()):
            raise ValueError(
                "the encoder inside a CachedEncoder is frozen, but something asked for its gradients: "
                "freeze it again (requires_grad_(False)), or use it without CachedEncoder to train it"
            )
        samples = [audio.shape[1]] * len(audio) if lengths is None else lengths.tolist()
        frames = [-(-count // self.hop_length) for count in samples]
        store = self._current_store()
        keys = _content_keys(audio, samples)

        missing = {key: row for row, key in enumerate(keys) if key not in store}  # one row for clips that are alike
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        if missing:
            rows = list(missing.values())
            counts = torch.tensor([samples[row] for row in rows], device=audio.device)
            with torch.no_grad():
                fresh = self.encoder(audio[rows, : max(samples[row] for row in rows)], counts).features
            for index, (key, row) in enumerate(missing.items()):
                store[key] = fresh[index, : frames[row]]

        dtype = next((weight.dtype for weight in self.encoder.parameters()), torch.float32)
        if self.codebook_size is not None:
            dtype = torch.float32
        features = torch.zeros(len(keys), -(-audio.shape[1] // self.hop_length), self.dim, dtype=dtype)
        for row, key in enumerate(keys):
            features[row, : frames[row]] = store[key]
        return SpeechFeatures(features.to(audio.device), torch.tensor(frames, dtype=torch.int64, device=audio.device))

    def train(self, mode: bool = True) -> CachedEncoder:
        """Set the mode of this module; the encoder inside stays in ``eval``."""
        super().train(mode)
        self.encoder.eval()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy, here or in another process, has a cache of its own; a folder is shared through its files."""
        return {**self.__dict__, "_store": None, "_fingerprint": None, "_seen": ()}

    def _current_store(self) -> FeatureStore:
        """The cache of the weights as they are now; the fingerprint is taken again only if one was written to."""
        seen = tuple((w.data_ptr(), 0 if w.is_inference() else w._version) for w in self._weights().values())
        if self._store is None or seen != self._seen:
            fingerprint = self.fingerprint()
            if self._store is None or fingerprint != self._fingerprint:
                self._store = FeatureStore(
                    None if self.folder is None else Path(self.folder) / fingerprint,
                    torch.float16 if self.codebook_size is None else torch.float32,
                )
            self._fingerprint, self._seen = fingerprint, seen
        return self._store

    def fingerprint(self) -> str:
        """Name of this encoder with these weights: class, ``extra_repr``, shapes, some of every weight's values."""
        digest = hashlib.blake2b(digest_size=KEY_BYTES)
        kind = f"{type(self.encoder).__module__}.{type(self.encoder).__qualname__}"
        digest.update(f"{kind}|{self.hop_length}{self.encoder.extra_repr()}".encode())
        if self.codebook_size is not None:  # tokenizers may differ in what no weight shows
            parts = [f"{name} {type(part).__qualname__}" for name, part in self.encoder.named_modules()]
            digest.update(f"|{self.dim} codes of {self.codebook_size}|{parts}".encode())
        for name, weight in self._weights().items():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // _SAMPLES_PER_WEIGHT)].float().cpu().numpy().tobytes()
            digest.update(f"|{name}{tuple(weight.shape)}{weight.dtype}".encode() + sample)
        return digest.hexdigest()

    def _weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of the encoder inside."""
        return dict(self.encoder.state_dict(keep_vars=True))


def _content_keys(audio: Tensor, samples: list[int]) -> list[bytes]:
    """A hash of every row's own samples."""
    waves = audio.detach().to("cpu", torch.float32).contiguous().numpy()
    return [
        hashlib.blake2b(wave[:count].tobytes(), digest_size=KEY_BYTES).digest()
        for wave, count in zip(waves, samples, strict=True)
    ]
