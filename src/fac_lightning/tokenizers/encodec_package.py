"""EnCodec by the package ``encodec`` (https://github.com/facebookresearch/encodec), its authors' own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fac_lightning.tokenizers.encodec_base import EncodecBase
from fac_lightning.tokenizers.stand_ins import stand_ins
from fac_lightning.weights import CheckpointError

__all__ = ["EncodecPackageTokenizer"]

RELEASED = "encodec_24khz"


class EncodecPackageTokenizer(EncodecBase):
    """EnCodec at 24 kHz by the package ``encodec`` (extra ``encodec``): the codes of :class:`EncodecTokenizer`.

    The package imports torchaudio to read files, which is not asked of it here, and torchaudio's wheels do not load
    everywhere: unless it is imported already, a stand-in takes its place while the package is imported.

    Args:
        weights: "encodec_24khz", which the package downloads; the path of that file (``encodec_24khz-d7cc33bc.th``) or
            of another state dict of the same network; ``None`` draws weights from ``seed``.
        num_codebooks: Codebooks used, the coarsest first; the bandwidth follows from it (8 are 6 kbit/s).
        seed: Of random weights, which are the same in every process.

    Raises:
        ImportError: If the package is absent.
        CheckpointError: If the weights cannot be read or are those of another network.
    """

    causal = True

    def __init__(self, weights: str | None = "encodec_24khz", num_codebooks: int = 8, seed: int = 0) -> None:
        model = _build(weights, seed)
        super().__init__(model, int(model.sample_rate), int(model.encoder.hop_length), num_codebooks)
        if weights is None:
            self.draw(seed)
        # Convolutions at 75 Hz mirror the first frames: shorter rows and chunks would be mirrored otherwise.
        self.padded_from = self.first_chunk_frames = int(model.decoder.model[0].conv.conv.kernel_size[0])


def _build(weights: str | None, seed: int) -> Any:
    """The package's network, frozen, its weight norms worked out once."""
    package = _import_package()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore", FutureWarning)  # the package makes weight norms by a name that torch deprecates
        torch.manual_seed(seed)
        model = package.EncodecModel.encodec_model_24khz(pretrained=False)
    if weights is not None:
        state = _read(package, weights)
        try:
            model.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise CheckpointError(f"weights {weights!r} are not those of EnCodec at 24 kHz: {reason}") from error
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)
    return model.requires_grad_(False).eval()


def _read(package: Any, weights: str) -> Any:
    """A state dict, from a file or from where the package keeps and fetches its own."""
    if weights == RELEASED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                return package.EncodecModel.encodec_model_24khz(pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"weights {weights!r} could not be downloaded ({error}); fetch the file elsewhere and give its path"
            ) from error
    if not Path(weights).is_file():
        raise CheckpointError(f"weights {weights!r}: no such file, and not the name {RELEASED!r}")
    try:
        return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"weights {weights!r} cannot be read: {reason}") from error


def _import_package() -> Any:
    try:
        with stand_ins("EncodecPackageTokenizer", "encodec", "torchaudio"):
            import encodec
    except ImportError as error:
        raise ImportError(
            f"EncodecPackageTokenizer needs encodec ({error}): pip install 'fac-lightning[encodec]'"
        ) from error
    return encodec
