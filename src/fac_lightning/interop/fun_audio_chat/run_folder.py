"""A released checkpoint as a run folder, which every command knows, and back.

A run folder holds ``model.safetensors`` under our names and ``text_tokenizer/``; what else the checkpoint had lies in
``fun_audio_chat/``, so that an export can give it back.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from fac_lightning.interop.fun_audio_chat.checkpoint import CONFIG, Coverage, Layout, read_config, state_shapes
from fac_lightning.interop.fun_audio_chat.config import build_model, check_config, part_arguments
from fac_lightning.interop.fun_audio_chat.files import count_codes, side_files
from fac_lightning.interop.fun_audio_chat.model import FunAudioChat
from fac_lightning.interop.fun_audio_chat.names import places
from fac_lightning.interop.fun_audio_chat.processor import FunAudioChatProcessor
from fac_lightning.interop.fun_audio_chat.processor_files import TOKENIZER_CONFIG
from fac_lightning.merging.source import TensorSpec
from fac_lightning.merging.writer import StreamedWriter
from fac_lightning.models import SpeechLM
from fac_lightning.weights import CheckpointError

__all__ = ["ORIGIN", "from_run", "to_run"]

ORIGIN = "fun_audio_chat"  # in a run folder
LAYOUT = "layout.json"


def to_run(chat: FunAudioChat, folder: Path) -> None:
    """Write weights, text tokenizer and what an export needs into a folder that exists."""
    state = chat.model.state_dict()
    first: dict[int, str] = {}
    aliases = {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in state.items()}
    specs = {name: TensorSpec(state[name].dtype, tuple(state[name].shape)) for name in dict.fromkeys(aliases.values())}
    metadata = {"format": "pt", **{name: kept for name, kept in aliases.items() if name != kept}}
    with StreamedWriter(folder / "model.safetensors", specs, metadata) as writer:
        for name in writer.order:
            writer.write(state[name].to("cpu"))
    if chat.processor is not None:
        chat.processor.text_tokenizer.save_pretrained(str(folder / "text_tokenizer"))
    origin = folder / ORIGIN
    for name, content in {**chat.files, LAYOUT: json.dumps(asdict(chat.layout), indent=1).encode()}.items():
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_bytes(content)
    if CONFIG not in chat.files:
        (origin / CONFIG).write_text(json.dumps(chat.config, indent=2) + "\n", encoding="utf-8")


def from_run(model: SpeechLM, origin: Path) -> FunAudioChat:
    """A trained model with the files of the checkpoint it comes from.

    Args:
        model: Of the run.
        origin: The run folder that an import made, or the released checkpoint itself.

    Raises:
        CheckpointError: There are no such files, or the model is not of their sizes.
    """
    folder = origin / ORIGIN if (origin / ORIGIN).is_dir() else origin
    config, _ = read_config(folder)
    check_config(config, str(folder / CONFIG))
    files = {name: content for name, content in side_files(folder).items() if name != LAYOUT}
    layout = Layout()
    if (folder / LAYOUT).is_file():
        layout = Layout(**json.loads((folder / LAYOUT).read_text(encoding="utf-8")))
    processor = FunAudioChatProcessor.from_pretrained(folder) if (folder / TOKENIZER_CONFIG).is_file() else None
    with torch.device("meta"):
        wanted = places(state_shapes(build_model(part_arguments(config, codebook_size=count_codes(processor)))))
    try:
        held = places(state_shapes(model))
    except ValueError as error:
        raise CheckpointError(f"the model is not made of Fun-Audio-Chat's parts: {error}") from None
    coverage = Coverage(
        loaded=tuple(sorted(held.keys() & wanted.keys())),
        missing=tuple(sorted(wanted.keys() - held.keys())),
        unexpected=tuple(sorted(held.keys() - wanted.keys())),
        mismatched=tuple(
            f"{name} {held[name].shape} in the run, {wanted[name].shape} in {CONFIG}"
            for name in sorted(held.keys() & wanted.keys())
            if held[name].shape != wanted[name].shape
        ),
    )
    if not coverage.complete:
        raise CheckpointError(f"the model does not fit {folder / CONFIG}: {coverage}")
    return FunAudioChat(model, config, processor, None, coverage, layout, files)
