"""Families of language models in their least size, as configs of transformers."""

from __future__ import annotations

import copy
from typing import Any

__all__ = ["BACKBONE_FAMILIES", "family_config"]

_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # wide enough that a test sees what a token does
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_WINDOW: dict[str, Any] = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}
_NO_PAD: dict[str, Any] = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}  # theirs are beyond 320 tokens


def _with_vision(model_type: str, **text: Any) -> dict[str, Any]:
    """A vision-language model around a text tower, as Qwen3-VL has them."""
    mrope = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision: dict[str, Any] = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    vision |= {"patch_size": 4, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return {
        "model_type": model_type,
        "tie_word_embeddings": False,
        "text_config": {**_SIZES, "rope_parameters": mrope, **text},
        "vision_config": vision,
    }


#: Name -> config of transformers with a ``model_type``, for ``HFBackbone(config=...)``. Each shows what its family is
#: known for: sliding windows shorter than a row, soft capping, layers without positions, experts, a vision tower.
BACKBONE_FAMILIES: dict[str, dict[str, Any]] = {
    "gemma2": {
        "model_type": "gemma2",
        **_SIZES,
        **_NO_PAD,
        **_WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 2.0,  # low enough that a test sees them
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {"model_type": "gemma3_text", **_SIZES, **_NO_PAD, **_WINDOW, "query_pre_attn_scalar": 8},
    "llama": {"model_type": "llama", **_SIZES},
    "mistral": {"model_type": "mistral", **_SIZES, "sliding_window": 3},
    "qwen2": {"model_type": "qwen2", **_SIZES},
    "qwen3": {"model_type": "qwen3", **_SIZES},
    "qwen3_moe": {"model_type": "qwen3_moe", **_SIZES, **_EXPERTS, "norm_topk_prob": True},
    "qwen3_vl": _with_vision("qwen3_vl"),
    "qwen3_vl_moe": _with_vision("qwen3_vl_moe", **_EXPERTS),
    "smollm3": {"model_type": "smollm3", **_SIZES, **_NO_PAD, "no_rope_layers": [1, 0]},
}


def family_config(
    family: str, vocab_size: int = 320, dim: int = 16, num_layers: int = 2, tied: bool = False
) -> dict[str, Any]:
    """A family's config in another size; a copy.

    Args:
        family: One of ``BACKBONE_FAMILIES``.
        vocab_size: Token ids.
        dim: Width, a multiple of 4.
        num_layers: Blocks; kinds of layers repeat.
        tied: Embedding and output matrix are one.

    Raises:
        ValueError: There is no such family.
    """
    if family not in BACKBONE_FAMILIES:
        raise ValueError(f"there is no family {family!r}; choose from {', '.join(sorted(BACKBONE_FAMILIES))}")
    config = copy.deepcopy(BACKBONE_FAMILIES[family])
    text = config.get("text_config", config)
    text |= {"vocab_size": vocab_size, "hidden_size": dim, "intermediate_size": 2 * dim, "head_dim": dim // 2}
    text["num_hidden_layers"] = num_layers
    text["tie_word_embeddings"] = config["tie_word_embeddings"] = tied
    for kinds in ("layer_types", "no_rope_layers"):
        if kinds in text:
            text[kinds] = (text[kinds] * num_layers)[:num_layers]
    return config
