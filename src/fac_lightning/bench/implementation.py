"""What another implementation has to offer to be timed beside ours: five methods.

``fac bench train --impl mine=my_lab.bench:Mine`` takes the class ``Mine`` of the module ``my_lab.bench``. It needs no
base class; a benchmark calls only the methods that it measures, and leaves an implementation out, saying so, where one
is missing.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import torch
from torch import Tensor

from fac_lightning.bench.conversations import Conversation
from fac_lightning.bench.sizes import BenchSizes

__all__ = ["Implementation", "load_implementation"]


class Implementation(Protocol):
    """A speech LLM of given sizes, for timing. Made without arguments; ``build`` is called first."""

    def build(self, sizes: BenchSizes, device: str) -> None:
        """Make model and optimizer with random weights. Not timed.

        Args:
            sizes: Of the parts; the workload counts, not the numbers that come out.
            device: ``cpu`` or ``cuda``.
        """

    def train_batch(self, conversations: list[Conversation]) -> Any:
        """What ``train_step`` is given for these conversations, on the device. Not timed."""

    def train_step(self, batch: Any) -> float:
        """Forward, backward and one step of the optimizer; the loss. Leaves no gradients behind."""

    def encode(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Features of waveforms ``(A, S)`` at 16 kHz on the device; ``lengths`` ``(A,)`` in samples, on the CPU."""

    def generate(self, conversation: Conversation, groups: int) -> Tensor:
        """Exactly ``groups`` groups of codes ``(groups * group_size,)`` said greedily after prompt and question."""


def load_implementation(word: str) -> tuple[str, Any]:
    """Name and a fresh instance of ``name=module:Class``.

    Raises:
        ValueError: The word has another form, or there is no such module or class.
    """
    name, _, where = word.partition("=")
    module, _, kind = where.partition(":")
    if not (name and module and kind):
        raise ValueError(f"--impl takes name=module:Class, for example mine=my_lab.bench:Mine, got {word!r}")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"--impl {word}: there is no module {error.name!r} to import") from error
    if not hasattr(found, kind):
        raise ValueError(f"--impl {word}: {module} has no class {kind!r}")
    return name, getattr(found, kind)()


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given; nothing to wait for on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
