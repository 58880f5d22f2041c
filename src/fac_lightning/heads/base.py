"""The slot ``head``: backbone hidden states -> groups of codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fac_lightning.types import HeadOutput

__all__ = ["SpeechHead"]


class SpeechHead(nn.Module, ABC):
    """Say the next group of codes from each hidden state.

    The context is the reply: groups of one reply see earlier groups of that reply only. The previous code of a
    reply's first code is the special ``bos`` code.

    Contract (``fac_lightning.testing.check_head``): masked labels change nothing; replies packed together give what
    each gives alone; ``step`` after ``step`` gives the log-probabilities of one teacher-forced pass.
    """

    dim: int  # width of the backbone
    group_size: int  # k
    num_codebooks: int  # Q
    codebook_size: int
    needs_text: bool = False  # condition also on the embedding of the position's text token

    @abstractmethod
    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels.

        Args:
            hidden: Conditions ``(H, dim)``, reply after reply.
            labels: ``(H, group_size, num_codebooks)`` or IGNORE. Labels may hold ``eos``; what follows it is IGNORE.
            reply_lengths: Groups per reply ``(U,)``, sums to H.
            text_embeds: ``(H, dim)``, detached, for heads with ``needs_text``.
        """

    @abstractmethod
    def new_state(self, batch_size: int) -> Any:
        """State of ``batch_size`` fresh replies for ``step``."""

    @abstractmethod
    def step(
        self, hidden: Tensor, state: Any, sample: Callable[[Tensor], Tensor], text_embeds: Tensor | None = None
    ) -> Tensor:
        """Say the next group ``(B, group_size, num_codebooks)`` after ``hidden`` ``(B, dim)``; ``state`` moves on.

        ``sample`` picks codes ``(B,)`` from logits ``(B, code_vocab_size)``; logits of ``bos`` and ``pad`` are -inf.
        Once a row said ``eos`` the rest of its group is filled with ``pad``.
        """
