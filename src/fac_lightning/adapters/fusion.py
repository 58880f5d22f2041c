"""Joining the streams that meet at a position."""

from __future__ import annotations

from torch import Tensor

from fac_lightning.adapters.base import Fusion

__all__ = ["AddFusion", "MeanFusion", "SumFusion"]


class SumFusion(Fusion):
    """Add the streams, as the reports do: ``c_t = E_speech(s_t) + E_text(t_t)`` (https://arxiv.org/abs/2512.20156)."""

    def forward(self, streams: Tensor, present: Tensor) -> Tensor:
        """One embedding ``(N, D)`` of streams ``(M, N, D)``; absent ones are zero already."""
        return streams.sum(0)


class MeanFusion(Fusion):
    """Average the streams that are present, as the released Fun-Audio-Chat does: ``(text + speech) / 2``.

    A position with one stream keeps it as it is; one with none is zero.
    """

    def forward(self, streams: Tensor, present: Tensor) -> Tensor:
        """One embedding ``(N, D)`` of streams ``(M, N, D)`` where ``present`` ``(M, N)`` says which are there."""
        counts = present.sum(0).clamp_min(1)  # (N,)
        return streams.sum(0) / counts[:, None].to(streams.dtype)


class AddFusion(Fusion):
    """Add user features to the embedded codes of the user, then average with text: mode ``add`` of the released model.

    Its mode ``replace``, in which features stand alone, is :class:`MeanFusion`.
    """

    reads_user_codes = True

    def forward(self, streams: Tensor, present: Tensor) -> Tensor:
        """One embedding ``(N, D)`` of streams ``(M, N, D)`` where ``present`` ``(M, N)`` says which are there."""
        counts = present[0].long() + present[1:].any(0).long()  # text, and speech of any kind
        return streams.sum(0) / counts.clamp_min(1)[:, None].to(streams.dtype)
