"""Our packed attention under the name ``fac_packed`` in transformers, for any of its causal LMs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.packed import PackedLayout, packed_attention

__all__ = ["ATTENTION_NAME", "packed_placeholder", "register_packed_attention"]

ATTENTION_NAME = "fac_packed"
#: Options of other models' attention that change scores: soft capping, sinks, relative positions.
_SHAPED_SCORES = {"softcap", "s_aux", "position_bias"}


def register_packed_attention() -> None:
    """Make ``fac_packed`` known to transformers; doing it again changes nothing.

    With a ``packed_layout`` the attention is packed; without one (cached generation) it is transformers' own SDPA and
    so is the mask, which therefore keeps left padding out of sight.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, _attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def packed_placeholder(device: torch.device) -> Tensor:
    """Stand-in for a mask in packed passes: transformers takes a 4-D mask as ready-made and builds no N x N one."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    packed_layout: PackedLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer; ``query`` ``(1, H, N, E)`` when packed, ``(B, H, L, E)`` otherwise."""
    extra = sorted(_SHAPED_SCORES & {name for name, value in kwargs.items() if value is not None})
    if extra:
        raise ValueError(
            f"{type(module).__name__} shapes its attention with {extra[0]}, which packed rows do not have; "
            "take a backbone with plain attention (Qwen, Llama, Mistral ...)"
        )
    if packed_layout is None:
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
            raise ValueError(
                f"{type(module).__name__} does not hand keyword arguments on to its attention, so rows cannot be "
                "packed; take a model of transformers whose layers pass **kwargs (Qwen, Llama, Mistral ...)"
            )
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, E)
    packed = packed_attention(query, key, value, packed_layout, scale=scaling, dropout=dropout, window=sliding_window)
    return packed.unsqueeze(0), None
