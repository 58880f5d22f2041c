"""Codecs of transformers: from a hub, from a folder, or of random weights for tests without a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from fac_lightning.weights import CheckpointError

__all__ = ["draw_codebooks", "load_codec", "noise", "output_of"]


def load_codec(
    kind: Any,
    name: str,
    pretrained: bool = True,
    config: dict[str, Any] | None = None,
    seed: int = 0,
    sizes: Mapping[str, dict[str, Any]] | None = None,
) -> Any:
    """A model of transformers to run, not to train: frozen, in eval mode, its weight norms worked out once.

    Args:
        kind: Class of the model.
        name: Hub id, or a folder that ``save_pretrained`` wrote, for which no network is asked.
        pretrained: Load weights of ``name``; if false they are drawn.
        config: Arguments of the model's configuration, for a model without weights; excludes ``pretrained``.
        seed: Of random weights, which are the same in every process.
        sizes: Configurations of models by name, for those without weights.

    Raises:
        ValueError: If ``config`` is given beside ``pretrained``, or no configuration is known.
        CheckpointError: If what ``name`` names cannot be read or is another model.
    """
    if pretrained and config is not None:
        raise ValueError("config describes a model without weights: set pretrained to false, or leave config out")
    if pretrained:
        model = _read(kind, name)
    else:
        settings = _settings(kind, name, sizes or {}) if config is None else kind.config_class(**config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kind(settings)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
    return model.requires_grad_(False).eval()


@torch.no_grad()
def draw_codebooks(layers: Iterable[Any], embeds: Tensor, seed: int) -> None:
    """Draw residual codebooks around what a random encoder answers; transformers leaves them at zero, all codes alike.

    Args:
        layers: Quantisers in their order, each with ``encode``, ``decode`` and a ``codebook``.
        embeds: ``(1, D, T)`` that the encoder gives for noise, see :func:`noise`.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        book = getattr(layer, "_codebook", None) or layer.codebook
        table = book.embed_sum if hasattr(book, "embed_sum") else book.embed
        spread, mean = torch.std_mean(embeds[0], dim=1)
        table.copy_(torch.randn(table.shape, generator=generator) * spread + mean)
        if hasattr(book, "_embed"):
            book._embed = None  # Mimi's copy of the table, made at first use
        embeds = embeds - layer.decode(layer.encode(embeds))


def noise(hop_length: int, seed: int) -> Tensor:
    """Noise ``(1, 1, S)`` of 64 frames that grows louder."""
    loudness = torch.linspace(0.01, 1, 64).repeat_interleave(hop_length)
    return (torch.randn(len(loudness), generator=torch.Generator().manual_seed(seed)) * loudness)[None, None]


@contextmanager
def output_of(module: torch.nn.Module) -> Iterator[list[Tensor]]:
    """What a module inside a model gives while the model runs, call after call."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def _settings(kind: Any, name: str, sizes: Mapping[str, dict[str, Any]]) -> Any:
    """Configuration of a model by name, without its weights and without a network."""
    if Path(name).is_dir():
        return kind.config_class.from_pretrained(name, local_files_only=True)
    if name not in sizes:
        raise ValueError(
            f"sizes of {name!r} are not known without its weights: give config={{...}}, the arguments of "
            f"{kind.config_class.__name__}, or one of {', '.join(sizes) or 'no name'}"
        )
    return kind.config_class(**sizes[name])


def _read(kind: Any, name: str) -> Any:
    """The model with trained weights in float32; nothing of it may be left to chance."""
    folder = Path(name).is_dir()
    if not folder and (Path(name).is_absolute() or name.startswith((".", "~"))):
        raise CheckpointError(f"there is no folder {name!r}; give a hub id, or a folder that save_pretrained wrote")
    try:
        model, found = kind.from_pretrained(
            name, dtype=torch.float32, local_files_only=folder, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{name!r} cannot be loaded as {kind.__name__}: {reason}") from error
    wrong = sorted(str(key) for key in (*found["missing_keys"], *found["mismatched_keys"]))
    if wrong:
        raise CheckpointError(
            f"{name!r} does not hold all of {kind.__name__}: {wrong[0]} and {len(wrong) - 1} more are missing or of "
            "another shape; is it another model?"
        )
    return model
