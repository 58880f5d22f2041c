"""Our packed attention under the name ``fac_packed`` in transformers, for any of its causal LMs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.packed import PackedLayout, capped_attention, packed_attention, packed_layout
from fac_lightning.slot_cache import SlotCache

__all__ = ["ATTENTION_NAME", "cached_forward", "packed_forward", "register_packed_attention", "slot_forward"]

ATTENTION_NAME = "fac_packed"
#: Options of other models' attention that change scores: sinks, relative positions.
_SHAPED_SCORES = {"s_aux", "position_bias"}


def register_packed_attention() -> None:
    """Make ``fac_packed`` known to transformers; doing it again changes nothing.

    With a ``packed_layout`` the attention is packed; without one (cached generation) it is transformers' own SDPA and
    so is the mask, which therefore keeps left padding out of sight.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION_NAME, _attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def packed_forward(
    model: Any, embeds: Tensor, position_ids: Tensor, lengths: Tensor, parents: Tensor | None = None, **options: Any
) -> Any:
    """Output of a transformers model on a packed line: ``last_hidden_state`` is ``(1, N, D)``.

    Args:
        model: Built with ``attn_implementation=ATTENTION_NAME``.
        embeds: ``(N, D)``.
        position_ids: ``(N,)``.
        lengths: Positions per row ``(R,)``; rows see only themselves.
        parents: The row that each row continues ``(R,)``, -1 for none; see ``packed_layout``.
        options: More arguments of the model's forward.
    """
    register_packed_attention()  # also in a process that got this model by pickling
    return model(
        inputs_embeds=embeds.unsqueeze(0),
        position_ids=position_ids.unsqueeze(0),
        # transformers takes a 4-D mask as ready-made and builds no N x N one
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device),
        use_cache=False,
        packed_layout=packed_layout(lengths, embeds.device, parents),
        **options,
    )


def cached_forward(model: Any, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
    """Hidden states ``(B, L, D)`` of new positions ``(B, L, D)`` behind those in ``cache``, which grows.

    ``mask`` ``(B, L_past + L)`` bool is False on (left) padding, ``position_ids`` are ``(B, L)``.
    """
    register_packed_attention()
    out = model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, past_key_values=cache, use_cache=True
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def slot_forward(model: Any, embeds: Tensor, slots: SlotCache, row: int | None = None) -> Tensor:
    """Hidden states ``(R, L, D)`` of new positions ``(R, L, D)`` of one row of ``slots``, or of all rows in use.

    Several positions at once are those of one row.
    """
    register_packed_attention()
    positions = slots.open(embeds.shape[1], row)
    out = model(
        inputs_embeds=embeds,
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeds.device),  # the cache has its own
        position_ids=positions,
        past_key_values=slots,
        use_cache=True,
        slots=slots,
    )
    slots.close()
    hidden: Tensor = out.last_hidden_state
    return hidden


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed_layout: PackedLayout | None = None,
    slots: SlotCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer; ``query`` ``(1, H, N, E)`` when packed, ``(B, H, L, E)`` otherwise."""
    extra = sorted(_SHAPED_SCORES & {name for name, value in kwargs.items() if value is not None})
    if extra:
        raise ValueError(
            f"{type(module).__name__} shapes its attention with {extra[0]}, which packed rows do not have; "
            "take a backbone with plain attention (Qwen, Llama, Mistral ...)"
        )
    if slots is not None:
        heard = slots.attend(slots.layer, query, key, value, scaling, sliding_window, softcap)
        return heard.transpose(1, 2), None
    if packed_layout is None:
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
            raise ValueError(
                f"{type(module).__name__} does not hand keyword arguments on to its attention, so rows cannot be "
                "packed; take a model of transformers whose layers pass **kwargs (Qwen, Llama, Mistral ...)"
            )
        if softcap is not None:
            seen = _seen(query.shape[2], key.shape[2], query.device) if attention_mask is None else attention_mask
            return capped_attention(query, key, value, seen, softcap, scaling, dropout).transpose(1, 2), None
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, heads, E)
    packed = packed_attention(
        query, key, value, packed_layout, scale=scaling, dropout=dropout, window=sliding_window, softcap=softcap
    )
    return packed.unsqueeze(0), None


def _seen(queries: int, keys: int, device: torch.device) -> Tensor:
    """What transformers means by no mask ``(queries, keys)``: the last positions of a line, each with all before it."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
