"""S3 speech tokens by the package ``s3tokenizer`` (https://github.com/xingchensong/S3Tokenizer)."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.s3_base import NAMES, S3Base
from fac_lightning.tokenizers.stand_ins import stand_ins
from fac_lightning.weights import CheckpointError

__all__ = ["S3Tokenizer"]

HEAD_DIM = 64  # fixed by the package's table of rotary positions


class S3Tokenizer(S3Base):
    """Speech -> the codes that Fun-Audio-Chat and CosyVoice 2 and 3 speak: 25 a second out of 6561, from 16 kHz.

    The network is that of the package ``s3tokenizer`` (extra ``s3``), run on batches in which padding reaches no code.
    Sound comes from a detokenizer; with ``weights=None`` nothing is loaded and the tokenizer only speaks, which is what
    a model that hears through an encoder needs.

    The package imports torchaudio to read files, which is not asked of it here, and torchaudio's wheels do not load
    everywhere: unless it is imported already, a stand-in takes its place while the package is imported.

    Args:
        weights: "speech_tokenizer_v3_25hz" or "speech_tokenizer_v2_25hz", which the package downloads from ModelScope;
            or a file: the released ``speech_tokenizer_v2.onnx`` or ``speech_tokenizer_v3.onnx``, or a state dict in
            ``.pt`` or ``.safetensors``; ``None`` loads nothing.
        detokenizer: A ``SpeechDetokenizer`` of these codes; ``None`` leaves encoding only.

    Raises:
        ImportError: If the package is absent.
        CheckpointError: If the weights are not those of an S3 tokenizer.
    """

    def __init__(self, weights: str | None = "speech_tokenizer_v3_25hz", detokenizer: nn.Module | None = None) -> None:
        super().__init__(detokenizer, weights)
        self.model: Any = None if weights is None else _build(_read_weights(weights), weights)

    def quantize(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """Codes ``(B, ceil(M / 4))`` of log-mels ``(B, 128, M)`` of at most 30 s; ``lengths`` ``(B,)`` in frames."""
        if self.model is None:
            raise ValueError(
                "this S3Tokenizer was built with weights=None and only speaks; to encode, name "
                f"{' or '.join(NAMES.values())} or the path of a weights file"
            )
        # Not the package's quantize(): the pieces are short enough, and its search for long ones waits for the device.
        hidden, _ = self.model.encoder(mels, lengths)
        codes: Tensor = self.model.quantizer.encode(hidden)
        return codes.long()


def _build(state: dict[str, Tensor], weights: str) -> nn.Module:
    """The package's network with the sizes and values of ``state``."""
    first = state.get("encoder.conv1.weight")
    layers = {int(found[1]) for name in state if (found := re.match(r"encoder\.blocks\.(\d+)\.", name))}
    if first is None or first.dim() != 3 or not layers:
        raise CheckpointError(
            f"weights {weights!r} are not those of an S3 tokenizer v2 or v3: they hold no encoder.conv1.weight and "
            f"encoder.blocks, but {', '.join(sorted(state)[:3]) or 'nothing'}"
        )
    _import_package()
    from s3tokenizer.model_v3 import ModelConfigV3, S3TokenizerV3

    dim, num_mels = first.shape[:2]
    config = ModelConfigV3(
        n_mels=num_mels,
        n_audio_state=dim,
        n_audio_head=dim // HEAD_DIM,
        n_audio_layer=len(layers),
        use_sdpa=True,  # the same product, without a matrix of T x T for every head
    )
    with torch.random.fork_rng(devices=[]):  # it draws values that are replaced
        model: nn.Module = S3TokenizerV3("v3", config)  # v2 is the same network with fewer layers
    own = model.state_dict()
    # A layer norm without a bias may be exported without one: zero.
    zeros = {name: torch.zeros_like(own[name]) for name in own if name.endswith("_ln.bias") and name not in state}
    state = state | zeros
    wrong = sorted(
        name for name in own.keys() | state.keys()
        if name not in own or name not in state or own[name].shape != state[name].shape
    )  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"weights {weights!r} do not fit an S3 tokenizer of {len(layers)} layers: {', '.join(wrong[:3])} "
            f"({len(wrong)} in all) are missing, unknown or of another shape"
        )
    model.load_state_dict(state)
    return model.requires_grad_(False).eval()


def _read_weights(weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if weights in NAMES.values():
        path = _download(weights)
    elif not path.is_file():
        raise CheckpointError(
            f"weights {weights!r}: no such file, and not one of the names {', '.join(NAMES.values())}"
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".onnx":
            return _read_onnx(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise
    except Exception as error:  # three readers, each with errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"weights {weights!r} cannot be read as an S3 tokenizer: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"weights {weights!r} hold no plain dictionary of tensors; save model.state_dict()")
    return state


def _read_onnx(path: Path) -> dict[str, Tensor]:
    """Weights of a released ONNX file, found by the package under the names that each version's exporter gave."""
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("reading S3 weights from ONNX needs onnx: pip install 'fac-lightning[s3]'")
    package = _import_package()
    readers = {"v2": package.onnx2torch, "v3": package.onnx2torch_v3}
    versions = [version for version in readers if version in path.name]
    if len(versions) != 1:
        raise ValueError("its name must say v2 or v3, as speech_tokenizer_v3.onnx does: the two are read differently")
    found: dict[str, Tensor] = readers[versions[0]](str(path))
    return found


def _download(name: str) -> Path:
    """The released ONNX file, from the package's own cache or by its own download, which checks the sha256."""
    package = _import_package()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "s3tokenizer"
    try:
        return Path(package._download(name, str(cache)))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"weights {name!r} could not be downloaded ({error}); fetch the file elsewhere and give its path"
        ) from error


def _import_package() -> ModuleType:
    """The package, imported without what it needs for other things than ours."""
    unused = ["torchaudio"] if importlib.util.find_spec("onnx") else ["torchaudio", "onnx"]
    try:
        with stand_ins("S3Tokenizer", "s3tokenizer", *unused):
            import s3tokenizer
            import s3tokenizer.model_v3
    except ImportError as error:
        raise ImportError(
            f"S3Tokenizer needs s3tokenizer 0.3 or newer ({error}): pip install 'fac-lightning[s3]'"
        ) from error
    module: ModuleType = s3tokenizer
    return module
