"""WavLM's attention by torch's fused kernel."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

__all__ = ["FusedWavLMAttention"]


class FusedWavLMAttention(WavLMAttention):
    """Transformers' attention with the same weights and numbers, without the attention weights that nobody reads.

    Transformers calls a function of torch that makes them whole for every head, and warns of it where rows are masked.
    """

    def torch_multi_head_self_attention(
        self, hidden_states: Tensor, attention_mask: Tensor | None, gated_position_bias: Tensor
    ) -> tuple[Tensor, Any]:
        """Attention of ``(B, T, D)`` under a mask ``(B, T)`` and a bias ``(B * H, T, T)``."""
        rows, length, _ = hidden_states.shape
        query, key, value = (
            proj(hidden_states).view(rows, length, self.num_heads, self.head_dim).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        bias = gated_position_bias.view(rows, self.num_heads, length, length).to(query.dtype)
        if attention_mask is not None:
            bias = bias.masked_fill(~attention_mask.bool()[:, None, None], float("-inf"))
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None
