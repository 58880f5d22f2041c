"""What a frozen encoder says of users' turns: made for the tars, read out of them, held against the model's encoder."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from fac_lightning.data.audio import to_int16
from fac_lightning.data.intake.cases import bad_data
from fac_lightning.data.shards.storage import Storage
from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.resampling import resample

__all__ = [
    "FEATURE_DTYPES",
    "FeatureMaker",
    "FeaturesOf",
    "TurnFeatures",
    "encoder_fingerprint",
    "refuse_other_encoder",
]

log = logging.getLogger(__name__)

FEATURE_DTYPES = {"float16": "<f2", "float32": "<f4"}
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)  # in which a model may hold the same weights
BATCH_SECONDS = {"cuda": 240, "cpu": 30}  # of padded audio that an encoder hears at once
SAMPLES_PER_WEIGHT = 4096  # values of each weight that enter the fingerprint


@dataclass(frozen=True)
class FeaturesOf:
    """The encoder that made the features of a folder."""

    encoder: str  # class, for messages
    fingerprints: Mapping[str, str]  # of its weights, by the type that they are held in
    sample_rate: int  # Hz that it hears
    hop_length: int  # samples per frame
    dim: int

    @staticmethod
    def of(encoder: SpeechEncoder) -> FeaturesOf:
        """What is to be known of an encoder."""
        prints = {str(kind).removeprefix("torch."): encoder_fingerprint(encoder, kind) for kind in PRECISIONS}
        plain = _inner(encoder)
        return FeaturesOf(type(plain).__name__, prints, encoder.sample_rate, encoder.hop_length, encoder.dim)


def encoder_fingerprint(encoder: SpeechEncoder, dtype: torch.dtype = torch.float32) -> str:
    """Name of an encoder with these weights, as they are in ``dtype``; one that remembers is what it wraps."""
    encoder = _inner(encoder)
    kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    digest = hashlib.blake2b(digest_size=8)
    sizes = (encoder.sample_rate, encoder.hop_length, encoder.dim, encoder.codebook_size)
    digest.update(f"{kind}|{sizes}|{encoder.extra_repr()}".encode())
    for name, weight in encoder.state_dict().items():
        flat = weight.detach().flatten()
        some = flat[:: max(1, flat.numel() // SAMPLES_PER_WEIGHT)]
        some = some.to(dtype) if some.is_floating_point() else some
        digest.update(f"|{name}{tuple(weight.shape)}".encode() + some.double().cpu().numpy().tobytes())
    return digest.hexdigest()


class FeatureMaker:
    """Run an encoder over turns, many at once; it is made once in each process.

    Args:
        make: Makes the encoder.
        dtype: ``float16`` or ``float32``, in which features are kept; codes are always kept in float32.
    """

    def __init__(self, make: Callable[[], SpeechEncoder], dtype: str = "float16") -> None:
        if dtype not in FEATURE_DTYPES:
            raise ValueError(f"feature_dtype must be one of {', '.join(FEATURE_DTYPES)}, got {dtype!r}")
        self.make, self.kept = make, dtype
        self._encoder: SpeechEncoder | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes an encoder of its own."""
        return {**self.__dict__, "_encoder": None}

    @property
    def encoder(self) -> SpeechEncoder:
        """The frozen encoder, on a GPU where there is one."""
        if self._encoder is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
            made = self.make()
            if not isinstance(made, SpeechEncoder):
                raise ValueError(f"features come from a speech encoder, {type(made).__name__} is none")
            self._encoder = _inner(made).requires_grad_(False).eval().to(device)
        return self._encoder

    @property
    def dtype(self) -> str:
        """Type of the numbers in the tar."""
        return FEATURE_DTYPES["float32" if self.encoder.codebook_size is not None else self.kept]

    def __call__(self, turns: Sequence[tuple[np.ndarray, int]]) -> list[tuple[np.ndarray, int]]:
        """Features ``(T, C)`` of turns ``(S,)`` int16 at their rates, and the samples of each at the encoder's rate.

        Turns of similar length share a batch. What the type of the tar cannot hold is infinite.
        """
        heard = [self._at_rate(*turn) for turn in turns]
        found = [np.zeros((0, self.encoder.dim), self.dtype)] * len(turns)
        device = next((one.device for one in self.encoder.state_dict().values()), torch.device("cpu"))
        seconds = BATCH_SECONDS.get(device.type, BATCH_SECONDS["cpu"])
        rest = sorted((i for i, samples in enumerate(heard) if len(samples)), key=lambda i: -len(heard[i]))
        while rest:
            size = max(1, seconds * self.encoder.sample_rate // len(heard[rest[0]]))
            batch, rest = rest[:size], rest[size:]
            for i, features in zip(batch, self._features([heard[i] for i in batch], device), strict=True):
                found[i] = features
        return [(features, len(samples)) for features, samples in zip(found, heard, strict=True)]

    def _at_rate(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Samples int16 at the encoder's rate."""
        wanted = self.encoder.sample_rate
        if rate == wanted:
            return samples
        return to_int16(resample(samples.astype(np.float32) / 32768, rate, wanted))

    @torch.no_grad()
    def _features(self, batch: Sequence[np.ndarray], device: torch.device) -> list[np.ndarray]:
        """Features of clips, as they are kept."""
        clips = [torch.from_numpy(samples.astype(np.float32) * (1 / 32768)) for samples in batch]
        lengths = torch.tensor([len(clip) for clip in clips])
        given = self.encoder(pad_sequence(clips, batch_first=True).to(device), lengths.to(device))
        with np.errstate(over="ignore"):
            kept = given.features.float().cpu().numpy().astype(self.dtype)
        return [each[:frames] for each, frames in zip(kept, given.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class TurnFeatures:
    """Reads the features of one turn, as ``Clip.load``."""

    storage: Storage
    tar: str
    offset: int
    frames: int
    dim: int
    dtype: str

    def __call__(self) -> np.ndarray:
        """Features ``(frames, dim)``.

        Raises:
            BadData: The tar is cut off.
        """
        size = self.frames * self.dim * np.dtype(self.dtype).itemsize
        data = self.storage.read_range(self.tar, self.offset, size)
        if len(data) != size:
            raise bad_data("FAC-D11", self.storage.path(self.tar), f"{len(data)} bytes", f"{size} bytes")
        return np.frombuffer(data, self.dtype).reshape(self.frames, self.dim)


def refuse_other_encoder(module: nn.Module, of: FeaturesOf) -> None:
    """Refuse to train on features with an encoder that did not make them, or that is trained.

    Raises:
        ValueError: Names both encoders, or the slot to freeze.
    """
    encoder = next((part for part in module.modules() if isinstance(part, SpeechEncoder)), None)
    if encoder is None:
        raise ValueError(f"data.features gives features of {of.encoder}, but the model has no encoder")
    if any(weight.requires_grad for weight in encoder.parameters()):
        raise ValueError(
            f"data.features gives what {of.encoder} said once, but the model's encoder is trained: freeze it "
            "(task.freeze: [encoder]), or train from audio (data.features: false)"
        )
    weights = list(encoder.state_dict().values())
    if any(hasattr(weight, "full_tensor") for weight in weights):
        log.warning("the encoder's weights are spread over processes; features are taken to be those of %s", of.encoder)
        return
    dtype = next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)
    wanted, found = of.fingerprints.get(str(dtype).removeprefix("torch.")), encoder_fingerprint(encoder, dtype)
    if found != wanted:
        raise ValueError(
            f"the shards have features of {of.encoder} {wanted}, but the model's encoder is "
            f"{type(_inner(encoder)).__name__} {found} ({str(dtype).removeprefix('torch.')}): write the shards "
            "anew with --features, or train from audio (data.features: false)"
        )


def _inner(encoder: SpeechEncoder) -> SpeechEncoder:
    """The encoder inside one that remembers."""
    inside = getattr(encoder, "encoder", None)
    return inside if encoder.remembers and isinstance(inside, SpeechEncoder) else encoder
