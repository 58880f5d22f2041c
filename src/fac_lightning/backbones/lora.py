"""A backbone that learns low-rank updates only: fine-tuning of large models on one device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fac_lightning.backbones.base import Backbone
from fac_lightning.backbones.four_bit import FourBitBackbone
from fac_lightning.backbones.hf import HFBackbone
from fac_lightning.slot_cache import SlotCache

__all__ = ["LoRABackbone"]


class LoRABackbone(Backbone):
    """Freeze a backbone and add a trained product of two thin matrices to chosen linear layers.

    Low-rank adaptation (https://arxiv.org/abs/2106.09685) by the library ``peft``. At the start the outputs are those
    of the given backbone, which becomes part of this one. Around a ``FourBitBackbone`` this is QLoRA. The experts of a
    mixture are stacks and no linear layers: they stay as they are.

    Args:
        backbone: The model to adapt.
        rank: Width of the update.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: Probability that an input of the update is dropped.
        targets: Names of the linear layers to adapt, as their last part (``["q_proj", "v_proj"]``); None adapts every
            linear layer of the blocks.
        train_embeddings: Train the text embedding and the output matrix too, for example when special tokens are new.
        use_dora: Learn the length of every row of a weight beside its direction, which alone the thin matrices then
            turn (DoRA, https://arxiv.org/abs/2402.09353).
        use_rslora: Scale by ``alpha / sqrt(rank)``, so that a high rank learns as fast as a low one (rank-stabilised
            LoRA, https://arxiv.org/abs/2312.03732).

    Raises:
        ImportError: peft is not installed.
        ValueError: ``targets`` match no layer.
    """

    takes_parents = True

    def __init__(
        self,
        backbone: HFBackbone,
        rank: int = 16,
        alpha: float = 32.0,
        dropout: float = 0.0,
        targets: list[str] | None = None,
        train_embeddings: bool = False,
        use_dora: bool = False,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise ImportError("LoRABackbone needs peft: pip install 'fac-lightning[lora]'") from error
        linear = {
            name.rsplit(".", 1)[-1] for name, part in backbone.model.named_modules() if isinstance(part, nn.Linear)
        }
        chosen = sorted(linear) if targets is None else list(targets)
        unknown = sorted(set(chosen) - linear)
        if unknown or not chosen:
            raise ValueError(
                f"targets {unknown or chosen} match no linear layer; choose from {', '.join(sorted(linear))}"
            )
        backbone.requires_grad_(False)
        self._config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=chosen,
            use_dora=use_dora,
            use_rslora=use_rslora,
        )
        inject_adapter_in_model(copy.deepcopy(self._config), backbone.model)
        if train_embeddings:
            backbone.model.get_input_embeddings().requires_grad_(True)
            backbone.output_weight.requires_grad_(True)
        self.backbone = backbone
        self.dim, self.vocab_size, self.logit_softcap = backbone.dim, backbone.vocab_size, backbone.logit_softcap

    @property
    def output_weight(self) -> Tensor:
        """Output matrix ``(vocab_size, dim)`` of the adapted model."""
        return self.backbone.output_weight

    def embed(self, text_ids: Tensor) -> Tensor:
        """Embeddings ``(..., dim)`` of token ids ``(...)``."""
        return self.backbone.embed(text_ids)

    def forward(self, embeds: Tensor, position_ids: Tensor, lengths: Tensor, parents: Tensor | None = None) -> Tensor:
        """Hidden states ``(N, dim)`` of a line ``(N, dim)``; rows see themselves and the rows they continue."""
        hidden: Tensor = self.backbone(embeds, position_ids, lengths, parents)
        return hidden

    def auxiliary_loss(self) -> Tensor | None:
        """What the adapted model adds to the loss, if anything; see ``HFBackbone.auxiliary_loss``."""
        return self.backbone.auxiliary_loss()

    def new_cache(self) -> Any:
        """An empty key-value cache."""
        return self.backbone.new_cache()

    def step(self, embeds: Tensor, mask: Tensor, position_ids: Tensor, cache: Any) -> Tensor:
        """Hidden states ``(B, L, dim)`` of new positions ``(B, L, dim)`` behind those in ``cache``, which grows."""
        return self.backbone.step(embeds, mask, position_ids, cache)

    def new_slots(self, num_slots: int, capacity: int) -> SlotCache:
        """Empty cache for ``step_slots``."""
        return self.backbone.new_slots(num_slots, capacity)

    def step_slots(self, embeds: Tensor, slots: SlotCache, row: int | None = None) -> Tensor:
        """Hidden states ``(R, L, dim)`` of new positions of rows in ``slots``; see ``Backbone.step_slots``."""
        return self.backbone.step_slots(embeds, slots, row)

    def update_parameters(self) -> list[nn.Parameter]:
        """The thin matrices, and with DoRA the lengths."""
        return [p for _, p in self._updates()]

    @contextmanager
    def without_updates(self) -> Iterator[None]:
        """Inside, the outputs are those of the backbone that was given; trained embeddings stay as they are."""
        from peft.tuners.lora import LoraLayer

        layers = [part for part in self.backbone.modules() if isinstance(part, LoraLayer)]
        trained = [(p, p.requires_grad) for p in self.backbone.parameters()]  # peft freezes and thaws with the switch
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    @torch.no_grad()
    def merged(self) -> HFBackbone:
        """A copy as a plain backbone with the updates added to its weights; all its parameters train again.

        Of a ``FourBitBackbone`` the weights come in full, for a packed sum would be rounded once more.
        """
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        if isinstance(self.backbone, FourBitBackbone):
            plain = self.backbone.unpacked()
            inject_adapter_in_model(copy.deepcopy(self._config), plain.model)
            places = dict(plain.named_parameters())
            for name, update in self._updates():
                places[name].copy_(update)
        else:
            plain = copy.deepcopy(self.backbone)
        adapted = [(name, part) for name, part in plain.model.named_modules() if isinstance(part, LoraLayer)]
        for name, part in adapted:
            part.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(plain.model.get_submodule(parent), leaf, part.get_base_layer())
        for entry in ("peft_config", "active_adapter"):  # what peft left on the model
            vars(plain.model).pop(entry, None)
        return plain.requires_grad_(True)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the merged model as a plain transformers folder."""
        self.merged().save_pretrained(folder)

    def _updates(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.backbone.named_parameters() if "lora_" in name)
