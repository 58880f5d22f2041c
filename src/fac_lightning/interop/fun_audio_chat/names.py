"""Names of tensors: those of the released checkpoint and ours, one table for both ways.

Experts of a mixture are one tensor each in a checkpoint and one stack a layer in transformers; ``Place`` says where in
our tensor a tensor of the checkpoint lies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["ALIASES", "Place", "places", "released_name"]

_CODE_TABLE = "audio_tower.embed_tokens.weight"
_RENAMED = (  # ours, released; the first that fits counts
    ("encoder.", "continuous_audio_tower."),
    ("code_adapter.table", _CODE_TABLE),
    ("code_adapter.proj.", "audio_tower.output_matching."),
    ("feature_adapter.proj.", "audio_tower.continual_output_matching."),
    ("head.table", _CODE_TABLE),
    ("head.split.", "audio_invert_tower.pre_matching."),
    ("head.input.", "audio_invert_tower.input_matching."),
    ("head.output.", "audio_invert_tower.output_matching."),
    ("head.transformer.", "audio_invert_tower.crq_transformer."),
    ("backbone.", "language_model."),
)
#: Second names of tied tensors -> the name under which they are kept.
ALIASES = {
    "audio_invert_tower.lm_head.weight": _CODE_TABLE,
    "language_model.lm_head.weight": "language_model.model.embed_tokens.weight",
}
_STACKED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True)
class Place:
    """Where a tensor of a checkpoint lies in our state dict."""

    name: str
    shape: tuple[int, ...]  # of the tensor in the checkpoint
    expert: int | None = None  # first index into a stack of experts
    start: int = 0  # first row inside the expert

    def of(self, tensor: Tensor) -> Tensor:
        """The view of our tensor that this place is."""
        return tensor if self.expert is None else tensor[self.expert].narrow(0, self.start, self.shape[0])


def released_name(name: str) -> str:
    """The checkpoint's name of one of our tensors.

    Raises:
        ValueError: The tensor belongs to a part that the released model does not have.
    """
    for ours, theirs in _RENAMED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"the released model has no place for {name}")


def places(shapes: Mapping[str, Iterable[int]]) -> dict[str, Place]:
    """Every tensor that a checkpoint of this model holds, by its released name.

    Args:
        shapes: Our tensors' names and sizes.
    """
    found: dict[str, Place] = {}
    for name, size in shapes.items():
        shape, released = tuple(size), released_name(name)
        stem, _, leaf = released.rpartition(".")
        if leaf in _STACKED and stem.endswith(".experts"):
            pieces = _STACKED[leaf]
            rows = shape[1] // len(pieces)
            for expert in range(shape[0]):
                for index, piece in enumerate(pieces):
                    place = Place(name, (rows, *shape[2:]), expert, index * rows)
                    found[f"{stem}.{expert}.{piece}.weight"] = place
        else:
            found.setdefault(released, Place(name, shape))
    return found
