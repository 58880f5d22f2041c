"""The slot ``backbone``: the shared text LLM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from fac_lightning.slot_cache import SlotCache

__all__ = ["Backbone"]


class Backbone(nn.Module, ABC):
    """A causal text LLM that takes embeddings and gives the last normed hidden states.

    Contract (``fac_lightning.testing.check_backbone``): rows packed in one line give what each gives alone; stepping
    with a cache gives what one pass gives; left padding in ``step`` changes nothing.
    """

    dim: int  # width of embeddings and hidden states
    vocab_size: int  # rows of the text embedding and of the output matrix
    takes_parents: bool = False  # rows may continue other rows: ``forward`` takes ``parents``
    logit_softcap: float | None = None  # logits ``x`` become ``cap * tanh(x / cap)``; none when None

    @abstractmethod
    def embed(self, text_ids: Tensor) -> Tensor:
        """Embeddings ``(..., dim)`` of token ids ``(...)``."""

    @property
    @abstractmethod
    def output_weight(self) -> Tensor:
        """Output matrix ``(vocab_size, dim)``, the parameter itself."""

    @abstractmethod
    def forward(self, embeds: Tensor, position_ids: Tensor, lengths: Tensor, parents: Tensor | None = None) -> Tensor:
        """Hidden states ``(N, dim)`` of a line ``(N, dim)``; the rows of ``lengths`` ``(R,)`` see only themselves.

        With ``parents`` ``(R,)`` a row also sees the row that it continues, -1 for none; given to backbones with
        ``takes_parents`` alone.
        """

    @abstractmethod
    def new_cache(self) -> Any:
        """Empty key-value cache for ``step``; all state of a generation lives in it."""

    @abstractmethod
    def step(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        """Hidden states ``(B, L, dim)`` of new positions ``(B, L, dim)`` behind those in ``cache``, which grows.

        Args:
            embeds: New positions ``(B, L, dim)``.
            mask: ``(B, L_past + L)`` bool, False on (left) padding.
            position_ids: ``(B, L)``.
            cache: What ``new_cache`` gave.
        """

    def new_slots(self, num_slots: int, capacity: int) -> SlotCache:
        """Empty cache for ``step_slots``, of which rows come and go; see ``SlotCache``.

        Raises:
            ValueError: The backbone has no ``step_slots``.
        """
        raise ValueError(
            f"{type(self).__name__} has no new_slots and step_slots, which many streams at a time need; talk with "
            "Generator or Session, or take HFBackbone"
        )

    def step_slots(self, embeds: Tensor, slots: SlotCache, row: int | None = None) -> Tensor:
        """Hidden states ``(R, L, dim)`` of new positions of rows in ``slots``, which move on; as ``step`` gives them.

        Args:
            embeds: ``(R, 1, dim)`` of all rows in use; or ``(1, L, dim)`` of one.
            slots: What ``new_slots`` gave.
            row: The one; all when None.
        """
        raise NotImplementedError(f"{type(self).__name__} has new_slots but no step_slots")

    def logits(self, hidden: Tensor) -> Tensor:
        """Text logits ``(..., vocab_size)`` of hidden states ``(..., dim)``."""
        logits = nn.functional.linear(hidden, self.output_weight.to(hidden.dtype))
        cap = self.logit_softcap
        return logits if cap is None else cap * (logits / cap).tanh()
