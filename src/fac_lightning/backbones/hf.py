"""Any causal language model of transformers as the backbone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.backbones.base import Backbone
from fac_lightning.hf_packed import ATTENTION_NAME, cached_forward, packed_forward, register_packed_attention

__all__ = ["HFBackbone"]

#: Config entries of models whose logits are more than a matrix product.
_SHAPED_LOGITS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
#: Layers that packed attention knows to keep inside their rows.
_LAYER_TYPES = {"full_attention", "sliding_attention"}


class HFBackbone(Backbone):
    """A transformers causal LM that runs on packed rows.

    Args:
        name: Hub id or local folder; None when ``config`` is given.
        config: Bare transformers config with a ``model_type``, for example
            ``{"model_type": "qwen3", "hidden_size": 64, ...}``; the weights are then random.
        pretrained: Load the weights of ``name``; False takes only its config, for weights that come from a checkpoint.
        vocab_size: Token ids that must have a row. A smaller embedding grows: new rows of loaded weights start as the
            mean of the old ones, which leaves a trained model's other outputs almost as they were.
        gradient_checkpointing: Recompute layers in the backward pass to save memory.
        dtype: Of the parameters, a name in ``torch``.
    """

    takes_parents = True

    def __init__(
        self,
        name: str | None = None,
        config: dict[str, Any] | None = None,
        pretrained: bool = True,
        vocab_size: int | None = None,
        gradient_checkpointing: bool = False,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModelForCausalLM

        if (name is None) == (config is None):
            raise ValueError("give either name (hub id or folder) or config (a dict with model_type), not both")
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"dtype {dtype!r} is not a torch dtype; take 'float32' or 'bfloat16'")
        register_packed_attention()
        options = {"attn_implementation": ATTENTION_NAME, "dtype": getattr(torch, dtype)}
        wanted = vocab_size or 0
        if name is not None and pretrained:
            lm = AutoModelForCausalLM.from_pretrained(name, **options)
            _grow(lm, wanted)
        else:
            settings = AutoConfig.from_pretrained(name) if name is not None else _bare_config(config or {})
            settings.vocab_size = max(settings.vocab_size, wanted)
            lm = AutoModelForCausalLM.from_config(settings, **options)
        self._check(lm)
        if gradient_checkpointing:
            # renamed within transformers 5; the old name warns where the new one exists
            enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        # The tied matrix is held once, so that a state dict names every tensor once.
        self.model = lm.base_model
        tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
        self.lm_head = None if tied else lm.get_output_embeddings()
        self.dim = int(self.model.config.hidden_size)
        self.vocab_size = int(self.output_weight.shape[0])

    @property
    def output_weight(self) -> Tensor:
        """Output matrix ``(vocab_size, dim)``; the embedding table itself when the model ties them."""
        holder = self.model.get_input_embeddings() if self.lm_head is None else self.lm_head
        weight: Tensor = holder.weight
        return weight

    def embed(self, text_ids: Tensor) -> Tensor:
        """Embeddings ``(..., dim)`` of token ids ``(...)``."""
        embeds: Tensor = self.model.get_input_embeddings()(text_ids)
        return embeds

    def forward(self, embeds: Tensor, position_ids: Tensor, lengths: Tensor, parents: Tensor | None = None) -> Tensor:
        """Hidden states ``(N, dim)`` of a line ``(N, dim)``; rows see themselves and the rows they continue."""
        hidden: Tensor = packed_forward(self.model, embeds, position_ids, lengths, parents).last_hidden_state[0]
        return hidden

    def new_cache(self) -> Any:
        """An empty ``transformers.DynamicCache``."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def step(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        """Hidden states ``(B, L, dim)`` of new positions ``(B, L, dim)`` behind those in ``cache``, which grows."""
        return cached_forward(self.model, embeds, mask, position_ids, cache)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder, which ``AutoModelForCausalLM`` and ``HFBackbone(name=folder)`` read."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):  # only the shell: names and config
            lm = AutoModelForCausalLM.from_config(copy.deepcopy(self.model.config))
        setattr(lm, lm.base_model_prefix, self.model)
        lm.set_output_embeddings(self.lm_head or _linear_over(self.output_weight))
        lm.save_pretrained(folder)

    @staticmethod
    def _check(lm: Any) -> None:
        config, output = lm.config, lm.get_output_embeddings()
        kind = getattr(config, "model_type", type(lm).__name__)
        strange = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
        if strange or not getattr(lm, "_supports_attention_backend", False):
            raise ValueError(
                f"{kind} mixes positions by {', '.join(strange) or 'code of its own'}, which would leak between packed "
                "rows; take a model whose layers are full or sliding attention (Qwen3, Llama, Mistral ...)"
            )
        shaped = [key for key in _SHAPED_LOGITS if getattr(config, key, None) not in (None, 1.0)]
        if shaped or getattr(output, "bias", None) is not None:
            what = shaped[0] if shaped else "a bias"
            raise ValueError(
                f"{kind} puts {what} on its logits, which the packed text loss does not compute; "
                "take a model with a plain output matrix (Qwen, Llama, Mistral ...)"
            )


def _bare_config(entries: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    entries = copy.deepcopy(entries)
    if "model_type" not in entries:
        raise ValueError("config needs a model_type, for example 'qwen3' or 'llama'")
    return AutoConfig.for_model(entries.pop("model_type"), **entries)


def _grow(lm: Any, vocab_size: int) -> None:
    """Give ``lm`` at least ``vocab_size`` rows; new rows are the mean of the old ones."""
    old = lm.get_input_embeddings().weight.shape[0]
    if vocab_size <= old:
        return
    lm.resize_token_embeddings(vocab_size, mean_resizing=False)
    with torch.no_grad():
        for matrix in {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}:
            matrix[old:] = matrix[:old].float().mean(0).to(matrix.dtype)


def _linear_over(weight: Tensor) -> nn.Linear:
    """A linear layer around an existing parameter."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight  # type: ignore[assignment]
    return layer
