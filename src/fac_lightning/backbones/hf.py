"""Any causal language model of transformers as the backbone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.backbones.base import Backbone
from fac_lightning.backbones.loading import bare_config, load_causal_lm, plain_config, read_config
from fac_lightning.backbones.mixture import load_balancing_loss
from fac_lightning.backbones.support import refuse_config, refuse_unsupported
from fac_lightning.backbones.vocabulary import grow_vocabulary, vocabulary_rows
from fac_lightning.hf_packed import (
    ATTENTION_NAME,
    cached_forward,
    packed_forward,
    register_packed_attention,
    slot_forward,
)
from fac_lightning.slot_cache import SlotCache

__all__ = ["HFBackbone"]


class HFBackbone(Backbone):
    """A transformers causal LM that runs on packed rows.

    Of a vision-language or audio checkpoint (Qwen3-VL, Gemma 3 ...) the language model alone is taken. A model whose
    rows would leak into each other is refused. A mixture of experts keeps itself in balance: see ``auxiliary_loss``.

    Args:
        name: Hub id or local folder; None when ``config`` is given.
        config: Bare transformers config with a ``model_type``, for example
            ``{"model_type": "qwen3", "hidden_size": 64, ...}``; the weights are then random.
        pretrained: Load the weights of ``name``; False takes only its config, for weights that come from a checkpoint.
        vocab_size: Token ids that must have a row. A smaller embedding grows: new rows of loaded weights start as the
            mean of the old ones, which leaves a trained model's other outputs almost as they were.
        gradient_checkpointing: Recompute layers in the backward pass to save memory.
        dtype: Of the parameters, a name in ``torch``.
        vocab_multiple: Rows are added up to a multiple of this number (64 suits tensor cores).

    Raises:
        ValueError: Arguments do not agree, or the model cannot run on packed rows.
        CheckpointError: The checkpoint lacks tensors.
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
        vocab_multiple: int = 1,
    ) -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM

        if (name is None) == (config is None):
            raise ValueError("give either name (hub id or folder) or config (a dict with model_type), not both")
        whole = read_config(name) if name is not None else bare_config(config or {})
        settings = plain_config(whole)
        refuse_config(settings)
        options = _options(dtype)
        rows = vocabulary_rows(settings.vocab_size, vocab_size, vocab_multiple)
        if name is not None and pretrained:
            lm = load_causal_lm(name, whole, **options)
            grow_vocabulary(lm, rows)
        else:
            settings.vocab_size = rows
            lm = AutoModelForCausalLM.from_config(settings, **options)
        self._hold(lm, gradient_checkpointing)

    def _hold(self, lm: Any, gradient_checkpointing: bool) -> None:
        """Become a model that is loaded."""
        refuse_unsupported(lm)
        if gradient_checkpointing:
            # renamed within transformers 5; the old name warns where the new one exists
            enable = getattr(lm, "activation_checkpointing_enable", None) or lm.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        # The tied matrix is held once, so that a state dict names every tensor once.
        self.model = lm.base_model
        tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
        self.lm_head = None if tied else lm.get_output_embeddings()
        config = self.model.config
        self.dim, self.vocab_size = int(config.hidden_size), int(self.output_weight.shape[0])
        self.logit_softcap = getattr(config, "final_logit_softcapping", None)
        self._routes = hasattr(config, "router_aux_loss_coef")
        self._balance: Tensor | None = None

    @property
    def output_weight(self) -> Tensor:
        """Output matrix ``(vocab_size, dim)``; the embedding table itself when the model ties them."""
        holder = self.model.get_input_embeddings() if self.lm_head is None else self.lm_head
        weight: Tensor = holder.weight
        return weight

    def embed(self, text_ids: Tensor) -> Tensor:
        """Embeddings ``(..., dim)`` of token ids ``(...)``, scaled where the model scales them (Gemma)."""
        embeds: Tensor = self.model.get_input_embeddings()(text_ids)
        return embeds

    def forward(self, embeds: Tensor, position_ids: Tensor, lengths: Tensor, parents: Tensor | None = None) -> Tensor:
        """Hidden states ``(N, dim)`` of a line ``(N, dim)``; rows see themselves and the rows they continue."""
        routing = self._routes and self.training and torch.is_grad_enabled()
        options = {"output_router_logits": True} if routing else {}
        out = packed_forward(self.model, embeds, position_ids, lengths, parents, **options)
        config = self.model.config
        logits = getattr(out, "router_logits", None) if routing else None  # per layer that routes
        self._balance = None
        if logits:
            self._balance = config.router_aux_loss_coef * load_balancing_loss(logits, config.num_experts_per_tok)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def auxiliary_loss(self) -> Tensor | None:
        """Load-balancing loss ``()`` of a mixture of experts over the last line that was trained on; else None.

        Scaled by the model's ``router_aux_loss_coef``, handed out once. See ``load_balancing_loss``.
        """
        balance, self._balance = self._balance, None
        return balance

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_balance": None}  # a copy begins without the graph of the last line

    def new_cache(self) -> Any:
        """An empty ``transformers.DynamicCache``."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def step(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        """Hidden states ``(B, L, dim)`` of new positions ``(B, L, dim)`` behind those in ``cache``, which grows."""
        return cached_forward(self.model, embeds, mask, position_ids, cache)

    def new_slots(self, num_slots: int, capacity: int) -> SlotCache:
        """Empty cache for ``step_slots``."""
        return SlotCache(num_slots, capacity, self.output_weight.device)

    def step_slots(self, embeds: Tensor, slots: SlotCache, row: int | None = None) -> Tensor:
        """Hidden states ``(R, L, dim)`` of new positions of rows in ``slots``; see ``Backbone.step_slots``."""
        return slot_forward(self.model, embeds, slots, row)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder, which ``AutoModelForCausalLM`` and ``HFBackbone(name=folder)`` read."""
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):  # only the shell: names and config
            lm = AutoModelForCausalLM.from_config(copy.deepcopy(self.model.config))
        setattr(lm, lm.base_model_prefix, self.model)
        lm.set_output_embeddings(self.lm_head or _linear_over(self.output_weight))
        lm.save_pretrained(folder)


def _options(dtype: str) -> dict[str, Any]:
    """What transformers is told when it builds a model."""
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype {dtype!r} is not a torch dtype; take 'float32' or 'bfloat16'")
    register_packed_attention()
    return {"attn_implementation": ATTENTION_NAME, "dtype": getattr(torch, dtype)}


def _linear_over(weight: Tensor) -> nn.Linear:
    """A linear layer around an existing parameter."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight  # type: ignore[assignment]
    return layer
