"""The weights that the published training begins with: an LLM, Whisper's encoder and a small LLM, in our names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fac_lightning.interop.fun_audio_chat.processor_files import local_folder
from fac_lightning.merging import FileSource, StreamedWriter, TensorSpec
from fac_lightning.weights import CheckpointError

__all__ = ["StartingWeights"]

_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")


class StartingWeights:
    """Job: gather the weights that Fun-Audio-Chat's training starts from, for ``init_from`` of the first stage.

    The LLM becomes the backbone, Whisper's encoder the encoder, the layers of a small LLM the transformer of the head
    (https://arxiv.org/abs/2512.20156; the head's origin is known from its sizes). Projections, adapters and the table
    of codes are in none of them: they stay as they are drawn. Tensors go one at a time from file to file, in the types
    that they have.

    Args:
        llm: Folder or hub id of a Qwen3, dense or with experts, or of a dense Qwen3-VL, whose text model is taken.
        out: Folder to write ``model.safetensors`` to.
        encoder: Folder or hub id of a Whisper; None leaves the encoder random.
        head: Folder or hub id of an LLM whose layers have the sizes of the head's; None leaves it random.
    """

    def __init__(
        self,
        llm: str,
        out: str,
        encoder: str | None = "openai/whisper-large-v3",
        head: str | None = "Qwen/Qwen3-0.6B-Base",
    ) -> None:
        self.out = Path(out)
        given = ((llm, _in_backbone), (encoder, _in_encoder), (head, _in_head))
        self.origins = {name: place for name, place in given if name is not None}

    def run(self) -> dict[str, Any]:
        """Write the file; how many tensors each model gave.

        Raises:
            CheckpointError: A model is not there, damaged, or holds nothing of what is looked for.
        """
        counts = {}
        with ExitStack() as stack:
            pieces: dict[str, list[tuple[FileSource, str]]] = {}
            for name, place in self.origins.items():
                source = stack.enter_context(_open(name))
                found = _pieces(source, place)
                counts[name] = len(found)
                pieces |= {ours: [(source, theirs) for theirs in names] for ours, names in found.items()}
            specs = {name: _spec(name, parts) for name, parts in pieces.items()}
            self.out.mkdir(parents=True, exist_ok=True)
            with StreamedWriter(self.out / "model.safetensors", specs, {"format": "pt"}) as writer:
                for name in writer.order:
                    for source, theirs in pieces[name]:
                        writer.write(source.read(theirs, 0, source.specs[theirs].numel))
        return {"out": str(self.out), "tensors": counts}


def _open(name: str) -> FileSource:
    try:
        return FileSource(local_folder(name, weights=True))
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error


def _pieces(source: FileSource, place: Callable[[str], str | None]) -> dict[str, list[str]]:
    """Our name -> the tensors that it is made of, in the order of its rows: experts are one stack with us."""
    found: dict[str, list[str]] = {}
    for name in sorted(source.specs, key=_order):
        ours = place(name)
        if ours is None:
            continue
        if expert := _EXPERT.fullmatch(ours):
            ours = f"{expert[1]}.{'down_proj' if expert[3] == 'down' else 'gate_up_proj'}"
        found.setdefault(ours, []).append(name)
    if not found:
        some = ", ".join(list(source.specs)[:2])
        raise CheckpointError(f"{source.label} holds nothing for the {place.__name__.removeprefix('_in_')}, but {some}")
    return found


def _order(name: str) -> tuple[str, int, int]:
    expert = _EXPERT.fullmatch(name)
    return (name, 0, 0) if expert is None else (expert[1], int(expert[2]), ("gate", "up", "down").index(expert[3]))


def _spec(name: str, parts: list[tuple[FileSource, str]]) -> TensorSpec:
    specs = [source.specs[theirs] for source, theirs in parts]
    if not name.endswith((".gate_up_proj", ".down_proj")):
        return specs[0]
    per_expert = 2 if name.endswith(".gate_up_proj") else 1
    if len(set(specs)) > 1 or len(specs) % per_expert or len(specs[0].shape) != 2:
        raise CheckpointError(
            f"{parts[0][0].label} does not hold the experts of {name} one by one and alike, as Qwen3-MoE does: some "
            "are missing, or it is another model"
        )
    rows, columns = specs[0].shape
    return TensorSpec(specs[0].dtype, (len(specs) // per_expert, per_expert * rows, columns))


def _in_backbone(name: str) -> str | None:
    if name == "lm_head.weight":
        return "backbone.lm_head.weight"
    return _renamed(
        name, {"model.language_model.": "backbone.model.", "model.visual.": None, "model.": "backbone.model."}
    )


def _in_encoder(name: str) -> str | None:
    inside = name.removeprefix("model.")
    return _renamed(
        inside, {"encoder.embed_positions.": None, "encoder.layer_norm.": "encoder.ln_post.", "encoder.": "encoder."}
    )


def _in_head(name: str) -> str | None:
    return _renamed(name, {"model.layers.": "head.transformer.layers.", "model.norm.": "head.transformer.norm."})


def _renamed(name: str, prefixes: Mapping[str, str | None]) -> str | None:
    """The name with the first prefix that it has exchanged; None where that says so, or where it has none."""
    for theirs, ours in prefixes.items():
        if name.startswith(theirs):
            return None if ours is None else ours + name.removeprefix(theirs)
    return None
