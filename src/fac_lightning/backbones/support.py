"""Which causal LMs of transformers can run on packed rows; the others are refused by what stands in the way."""

from __future__ import annotations

import inspect
from typing import Any

__all__ = ["refuse_config", "refuse_unsupported"]

#: Layers that packed attention knows to keep inside their rows.
_LAYER_TYPES = {"full_attention", "sliding_attention"}
#: Config entries of models whose logits are scaled; soft capping is computed.
_SCALED_LOGITS = ("logits_scaling", "logit_scale")
#: What a model must take, for rows are embeddings with positions of their own.
_INPUTS = {"inputs_embeds", "position_ids", "past_key_values"}


def refuse_config(config: Any) -> None:
    """Refuse by what a config tells, before weights are read.

    Raises:
        ValueError: With what the model does and packed rows do not.
    """
    kind = config.model_type
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if strange:
        raise _leaks(kind, ", ".join(strange))
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError(f"{kind} looks ahead (use_bidirectional_attention), so it cannot speak; take a causal model")
    if getattr(config, "hidden_size_per_layer_input", None):
        raise ValueError(
            f"{kind} looks token ids up in every layer (hidden_size_per_layer_input), and positions of speech have "
            "none; take a model whose layers see embeddings alone (Qwen3, Llama, Gemma 3 ...)"
        )
    scaled = [key for key in _SCALED_LOGITS if getattr(config, key, None) not in (None, 1.0)]
    if scaled:
        raise _shaped(kind, scaled[0])
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"{kind} comes quantised, which cannot be trained or merged; take the checkpoint from before quantisation "
            "(FourBitBackbone quantises it while loading)"
        )


def refuse_unsupported(lm: Any) -> None:
    """Refuse by what a built model is.

    Raises:
        ValueError: With what the model does and packed rows do not.
    """
    kind = lm.config.model_type
    if not getattr(lm, "_supports_attention_backend", False):
        raise _leaks(kind, "code of its own")
    lacking = sorted(_INPUTS - inspect.signature(lm.base_model.forward).parameters.keys())
    if lacking:
        raise ValueError(
            f"{kind} takes no {', '.join(lacking)}, so it knows no rows with positions of their own; "
            "take a model with rotary positions (Qwen3, Llama, Mistral ...)"
        )
    if any(name.endswith(".sinks") for name, _ in lm.base_model.named_parameters()):
        raise ValueError(
            f"{kind} shapes its attention with sinks, which packed rows do not have; "
            "take a backbone with plain attention (Qwen, Llama, Mistral ...)"
        )
    if getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise _shaped(kind, "a bias")


def _leaks(kind: str, what: str) -> ValueError:
    return ValueError(
        f"{kind} mixes positions by {what}, which would leak between packed rows; "
        "take a model whose layers are full or sliding attention (Qwen3, Llama, Mistral ...)"
    )


def _shaped(kind: str, what: str) -> ValueError:
    return ValueError(
        f"{kind} puts {what} on its logits, which the packed text loss does not compute; "
        "take a model with a plain output matrix (Qwen, Llama, Mistral ...)"
    )
