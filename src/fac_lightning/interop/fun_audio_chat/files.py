"""Checkpoints of Fun-Audio-Chat as folders: read, written, nothing half done."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fac_lightning.hf_packed import register_packed_attention
from fac_lightning.interop.fun_audio_chat.checkpoint import CONFIG, Layout, fill, read_config, write_weights
from fac_lightning.interop.fun_audio_chat.config import build_model, check_config, part_arguments
from fac_lightning.interop.fun_audio_chat.model import FunAudioChat
from fac_lightning.interop.fun_audio_chat.processor import FunAudioChatProcessor
from fac_lightning.interop.fun_audio_chat.processor_files import TOKENIZER_CONFIG, local_folder
from fac_lightning.merging.source import FileSource
from fac_lightning.models import SpeechLM
from fac_lightning.weights import CheckpointError

__all__ = ["count_codes", "load", "new_folder", "save", "side_files"]

log = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"
LARGEST_SIDE_FILE = 2**26  # bytes: tokenizers have some 10 MB, weights have more
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".gguf", ".index.json")
_ATTENTION = ("auto", "sdpa", "flash_attention_2")


def load(
    path_or_hub_id: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    attn: str = "auto",
) -> FunAudioChat:
    """Load a checkpoint of the released Fun-Audio-Chat.

    Sizes and ids come from its files. Every tensor of the model must be in the checkpoint and the other way round; tied
    tensors may be stored under either of their names. Tensors go one at a time from file to device, so the host holds
    one of them beside what stays on it.

    Args:
        path_or_hub_id: Folder, or id on the model hub.
        dtype: Of floating tensors; as stored when None.
        device: Where the model goes. ``meta`` checks the files and keeps nothing.
        attn: One of ``auto``, ``sdpa`` and ``flash_attention_2``, taken for the released class's sake: attention is
            packed, and its kernel follows from device and type.

    Returns:
        The model in eval mode, with its processor where the folder has tokenizers.

    Raises:
        CheckpointError: The checkpoint is damaged, incomplete, or not Fun-Audio-Chat's.
        ValueError: ``dtype`` or ``attn`` is unknown.
    """
    if attn not in _ATTENTION:
        raise ValueError(f"attn {attn!r} is unknown; choose one of {', '.join(_ATTENTION)}")
    kind = _floating(dtype)
    folder = local_folder(path_or_hub_id, weights=True)
    config, _ = read_config(folder)
    check_config(config, str(folder / CONFIG))
    try:
        source = FileSource(folder)
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    processor = FunAudioChatProcessor.from_pretrained(folder) if (folder / TOKENIZER_CONFIG).is_file() else None
    stored = next((spec.dtype for spec in source.specs.values() if spec.dtype.is_floating_point), torch.float32)
    name = str(kind or stored).removeprefix("torch.")
    parts = part_arguments(config, name, count_codes(processor))
    place = torch.device(device)
    try:
        with torch.device("meta"):
            model = build_model(parts)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG} does not make a model: {error}") from error
    with source:
        coverage = fill(model, source, place, kind)
    model.tie()
    if place.type != "meta":
        _real_buffers(model, place)
    return FunAudioChat(
        model.eval(), config, processor, _generation_config(folder), coverage, Layout.of(source), side_files(folder)
    ).eval()


def save(fun_audio_chat: FunAudioChat, path: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
    """Write a checkpoint that the released code reads, with the files and the order it was loaded with.

    Args:
        fun_audio_chat: What ``load`` gave, trained on or not.
        path: A folder that is not there yet, or empty.
        dtype: Of floating tensors; as they are when None.

    Raises:
        FileExistsError: Something stands there.
        ValueError: ``dtype`` is unknown.
    """
    folder = Path(path)
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: nothing is overwritten; name a new folder")
    kind = _floating(dtype)
    with new_folder(folder) as draft:
        state = fun_audio_chat.model.state_dict()
        write_weights(draft, state, fun_audio_chat.layout, kind)
        for name, content in fun_audio_chat.files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)
        _write_config(draft, fun_audio_chat, kind)
        if not fun_audio_chat.files and fun_audio_chat.processor is not None:
            fun_audio_chat.processor.save_pretrained(draft)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft that becomes ``folder`` when the block is left without an error, and nothing otherwise.

    ``folder`` is not there yet, or empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        if folder.is_dir():
            folder.rmdir()
        draft.replace(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _floating(dtype: str | torch.dtype | None) -> torch.dtype | None:
    kind = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        raise ValueError(f"dtype {dtype!r} is no floating type of torch; take 'bfloat16' or 'float32'")
    return kind


def count_codes(processor: FunAudioChatProcessor | None) -> int | None:
    """Real codes that the speech tokenizer writes (``[AU0000]`` ...); None where nothing tells."""
    if processor is None:
        return None
    written = [token for token in processor.speech_tokenizer.get_vocab() if token.startswith("[AU")]
    return len(written) or None


def _write_config(folder: Path, fun_audio_chat: FunAudioChat, dtype: torch.dtype | None) -> None:
    """``config.json``: as it was, byte for byte, unless something in it changed."""
    config = dict(fun_audio_chat.config)
    key = next((key for key in ("dtype", "torch_dtype") if key in config), None)
    if dtype is not None and (key or str(dtype) != f"torch.{fun_audio_chat.layout.dtype}"):
        config[key or "torch_dtype"] = str(dtype).removeprefix("torch.")
    file = folder / CONFIG
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != config:
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def side_files(folder: Path) -> dict[str, bytes]:
    """All of a checkpoint but its weights."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in name.parts) or file.name.endswith(_WEIGHTS):
            continue
        if file.stat().st_size > LARGEST_SIDE_FILE:
            log.warning(f"{file} has {file.stat().st_size >> 20} MB and is left out of what an export writes")
            continue
        found[name.as_posix()] = file.read_bytes()
    return found


def _generation_config(folder: Path) -> Any:
    from transformers import GenerationConfig

    if not (folder / GENERATION_CONFIG).is_file():
        return GenerationConfig()
    try:
        return GenerationConfig.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / GENERATION_CONFIG} cannot be read ({error})") from error


def _real_buffers(model: SpeechLM, device: torch.device) -> None:
    """Compute what a model built without memory still lacks: tables that no checkpoint holds."""
    register_packed_attention()
    for module in model.modules():
        lacking = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if lacking:
            fresh = dict(type(module)(module.config).named_buffers(recurse=False))  # rotary tables of transformers
            for name in lacking:
                module.register_buffer(name, fresh[name], persistent=False)
    model.to(device)
