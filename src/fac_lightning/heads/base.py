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
    reply's first code is the special ``bos`` code. A head with ``whole_sequence`` sees the whole row of positions
    instead, the prompt included: it is given all positions as if they were one reply, with IGNORE where nothing is
    said, and in generation reads the positions at which it says nothing with ``read``.

    Contract (``fac_lightning.testing.check_head``): masked labels change nothing; replies packed together give what
    each gives alone; ``step`` after ``step`` gives the log-probabilities of one teacher-forced pass; states know
    nothing of each other.
    """

    dim: int  # width of the backbone
    group_size: int  # k
    num_codebooks: int  # Q
    codebook_size: int
    needs_text: bool = False  # condition also on the embedding of the position's text token
    whole_sequence: bool = False  # the context is the whole row of positions, not the reply
    says_special: bool = False  # bos and pad have output rows of their own, and bos may be a label
    tied: bool = False  # shares the table of the code adapter: ``tie`` must be called

    @property
    def order(self) -> tuple[int, ...]:
        """Places ``frame * num_codebooks + codebook`` of a group in the order in which ``step`` asks for their codes.

        Frame after frame unless a head says otherwise; the first codebook of a frame always comes before its others,
        and in the order of the frames, for it is the one that ends a reply.
        """
        return tuple(range(self.group_size * self.num_codebooks))

    @abstractmethod
    def forward(
        self, hidden: Tensor, labels: Tensor, reply_lengths: Tensor, text_embeds: Tensor | None = None
    ) -> HeadOutput:
        """Log-probabilities of labels.

        Args:
            hidden: Conditions ``(H, dim)``, reply after reply.
            labels: ``(H, group_size, num_codebooks)`` or IGNORE. Labels may hold a frame of ``eos``; the frames behind
                it are IGNORE.
            reply_lengths: Groups per reply ``(U,)``, sums to H.
            text_embeds: ``(H, dim)``, detached, for heads with ``needs_text``.
        """

    @abstractmethod
    def new_state(self, batch_size: int) -> Any:
        """State of ``batch_size`` fresh replies for ``step``."""

    def new_slots(self, num_slots: int) -> Any:
        """State of up to ``num_slots`` replies that begin and end while others run on, for ``step``.

        It has ``join() -> int``, which begins a reply behind the others and gives its row, and ``leave(row)``, which
        ends one, and the last takes its row. ``step`` goes over all that have begun. Where this gives None, which a
        head may leave it at, many streams are spoken one after the other, each with a ``new_state(1)``.

        Those of a ``whole_sequence`` head also have ``copied(row)``, what a row has seen and said, and
        ``join(seen)``, which begins a row behind such a copy, as often as it is wanted; and ``read`` takes them with
        the ``row`` that reads, while the others stay where they are.
        """
        return None

    @abstractmethod
    def step(
        self, hidden: Tensor, state: Any, sample: Callable[[Tensor], Tensor], text_embeds: Tensor | None = None
    ) -> Tensor:
        """Say the next group ``(B, group_size, num_codebooks)`` after ``hidden`` ``(B, dim)``; ``state`` moves on.

        ``sample`` picks codes ``(B,)`` from logits ``(B, code_vocab_size)``, once for every place, in ``order``; logits
        of ``bos`` and ``pad`` are -inf unless the head ``says_special``. Once a row said ``eos`` the rest of its group
        is filled with ``pad``; a ``whole_sequence`` head remembers what ``sample`` gave there, as labels of the reply
        rule would have it.
        """

    def read(
        self,
        hidden: Tensor,
        codes: Tensor,
        state: Any,
        mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
        row: int | None = None,
    ) -> None:
        """Take in positions whose groups are given; ``state`` moves on. Nothing to do where the context is the reply.

        Args:
            hidden: ``(B, L, dim)``.
            codes: Groups said from these positions ``(B, L, group_size, num_codebooks)``, pad where nothing is said.
            state: What ``new_state`` gave, or ``new_slots``.
            mask: ``(B, L)`` bool, False on (left) padding; None for no padding, of which slots have none.
            text_embeds: ``(B, L, dim)``, for heads with ``needs_text``; zero where a position has no text.
            row: Of slots, the row that reads; B is 1.
        """

    def tie(self, table: nn.Parameter) -> None:
        """Share the table ``(rows, dim)`` of the code adapter; only for heads that are ``tied``."""
        raise ValueError(f"{type(self).__name__} has tables of its own and shares none")

    def _set_sizes(self, dim: int, group_size: int, codebook_size: int, num_codebooks: int) -> None:
        """Remember the sizes that every head has.

        Raises:
            ValueError: One is below 1.
        """
        if min(dim, group_size, codebook_size, num_codebooks) < 1:
            raise ValueError(
                "dim, group_size, codebook_size and num_codebooks must be at least 1, got "
                f"{dim}, {group_size}, {codebook_size} and {num_codebooks}"
            )
        self.dim, self.group_size = dim, group_size
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
