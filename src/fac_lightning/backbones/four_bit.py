"""A backbone whose linear layers are kept in four bits: a large model fits a small device while LoRA trains it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from fac_lightning.backbones.hf import HFBackbone

__all__ = ["FourBitBackbone"]


class FourBitBackbone(HFBackbone):
    """A pretrained causal LM in the form of QLoRA (https://arxiv.org/abs/2305.14314), by the library ``bitsandbytes``.

    Every linear layer of the blocks is held in four bits and widened where it is used; the two matrices of the
    vocabulary and the norms stay as they are. Packed weights do not train: put the backbone into a ``LoRABackbone``.
    They are no part of the state dict either, and come from ``name`` again wherever the model is built.

    Args:
        name: Hub id or local folder.
        vocab_size: Token ids that must have a row; see ``HFBackbone``.
        gradient_checkpointing: Recompute layers in the backward pass to save memory.
        dtype: Of the computation and of all that is not packed, a name in ``torch``.
        vocab_multiple: Rows are added up to a multiple of this number.
        quant_type: ``"nf4"`` spaces the sixteen values as a normal distribution does, ``"fp4"`` as floats are.
        double_quant: Hold the scales of blocks in eight bits too.

    Raises:
        ImportError: bitsandbytes is not installed.
        ValueError: The model is a mixture whose experts are no linear layers.
    """

    def __init__(
        self,
        name: str,
        vocab_size: int | None = None,
        gradient_checkpointing: bool = False,
        dtype: str = "bfloat16",
        vocab_multiple: int = 1,
        quant_type: Literal["nf4", "fp4"] = "nf4",
        double_quant: bool = True,
    ) -> None:
        layers = _library().nn
        if quant_type not in ("nf4", "fp4"):
            raise ValueError(f"quant_type must be 'nf4' or 'fp4', got {quant_type!r}")
        super().__init__(
            name=name,
            vocab_size=vocab_size,
            gradient_checkpointing=gradient_checkpointing,
            dtype=dtype,
            vocab_multiple=vocab_multiple,
        )
        stacked = next((n for n, p in self.model.named_parameters() if p.dim() > 2), None)
        if stacked is not None:
            raise ValueError(
                f"{name} holds its experts in stacks ({stacked}), which bitsandbytes does not pack; "
                "take HFBackbone for a mixture of experts"
            )
        for path, layer in list(self.model.named_modules()):
            if isinstance(layer, nn.Linear):
                packed = layers.Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=layer.weight.dtype,
                    compress_statistics=double_quant,
                    quant_type=quant_type,
                    device="meta",
                )
                packed.weight = layers.Params4bit(
                    layer.weight.detach(), compress_statistics=double_quant, quant_type=quant_type, module=packed
                )
                packed.bias = layer.bias
                # on CPUs the library would turn to another layout in eval mode, which nobody else can unpack
                packed.support_avx512bf16_for_cpu = False
                parent, _, leaf = path.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, packed.to(layer.weight.device))  # moving packs
        self.model.is_loaded_in_4bit = True  # what peft asks
        self.register_state_dict_post_hook(_without_packed)
        self.register_load_state_dict_pre_hook(_with_packed)

    def unpacked(self) -> HFBackbone:
        """A copy with its weights in full, as training saw them; without low-rank updates, where it has some."""
        config = self.model.config
        dtype = str(self.output_weight.dtype).removeprefix("torch.")
        plain = HFBackbone(config={**config.to_dict(), "model_type": config.model_type}, dtype=dtype)
        state = {
            name.replace(".base_layer.", "."): p.detach() for name, p in self.named_parameters() if "lora_" not in name
        }
        for name, layer in _packed(self):
            weight = layer.weight
            full = _library().functional.dequantize_4bit(weight.data, weight.quant_state)
            state[f"{name}.weight".replace(".base_layer.", ".")] = full.to(layer.compute_dtype)
        plain.load_state_dict(state)
        return plain.to(self.output_weight.device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder with the weights in full."""
        self.unpacked().save_pretrained(folder)


def _library() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError("FourBitBackbone needs bitsandbytes: pip install 'fac-lightning[qlora]'") from error
    return bitsandbytes


def _packed(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Packed layers by name."""
    layers = _library().nn
    for name, part in module.named_modules():
        if isinstance(part, layers.Linear4bit):
            yield name, part


def _without_packed(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Leave packed weights and their scales out of a state dict."""
    for name, _layer in _packed(module):
        weight = f"{prefix}{name}.weight"
        for key in [key for key in state if key == weight or key.startswith(f"{weight}.")]:
            del state[key]


def _with_packed(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let a state dict hold the packed weights that are here, which are those that it was trained with."""
    for name, layer in _packed(module):
        state[f"{prefix}{name}.weight"] = layer.weight.data
