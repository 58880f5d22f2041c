"""The language model of any checkpoint of transformers: a causal LM, or the text tower of a larger model.

A vision-language or audio checkpoint holds an ordinary LLM among other things. It is loaded under the names of that
LLM, as if it had been published alone; what stands beside it is neither built nor read.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fac_lightning.weights import CheckpointError

__all__ = ["bare_config", "load_causal_lm", "plain_config", "read_config"]

#: Text towers whose only difference from a plain LM is that images may have positions in three directions.
_PLAIN: dict[str, dict[str, Any]] = {
    "qwen2_5_vl_text": {"model_type": "qwen2"},
    "qwen2_vl_text": {"model_type": "qwen2"},
    "qwen3_vl_moe_text": {"model_type": "qwen3_moe", "norm_topk_prob": True},
    "qwen3_vl_text": {"model_type": "qwen3"},
}
_IMAGES = ("mrope_section", "mrope_interleaved")


def read_config(name: str) -> Any:
    """Transformers' config of a hub id or folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(name, local_files_only=Path(name).is_dir())


def bare_config(entries: dict[str, Any]) -> Any:
    """Transformers' config of its entries, ``model_type`` among them; the entries stay as they are.

    Raises:
        ValueError: There is no ``model_type``.
    """
    from transformers import AutoConfig

    entries = copy.deepcopy(entries)
    if "model_type" not in entries:
        raise ValueError("config needs a model_type, for example 'qwen3' or 'llama'")
    return AutoConfig.for_model(entries.pop("model_type"), **entries)


def plain_config(config: Any) -> Any:
    """Config of the causal LM in a model: its own, or that of its text tower.

    Raises:
        ValueError: Transformers knows no causal LM of this kind.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    text = config.get_text_config(decoder=True)
    if text.model_type in _PLAIN:
        entries = text.to_dict()
        # the rotary angles of text, whose three positions are one
        rope = {k: v for k, v in (entries.pop("rope_parameters", None) or {}).items() if k not in _IMAGES}
        rope["rope_type"] = "default" if rope.get("rope_type") == "mrope" else rope.get("rope_type", "default")
        entries |= {"rope_parameters": rope, **_PLAIN[text.model_type]}
        plain = AutoConfig.for_model(entries.pop("model_type"), **entries)
    elif type(text) in AutoModelForCausalLM._model_mapping:
        plain = config if text is config else copy.deepcopy(text)
    else:
        within = "" if text is config else f", the text tower of {config.model_type},"
        raise ValueError(
            f"{text.model_type}{within} is no causal LM of transformers; take a model that AutoModelForCausalLM knows, "
            f"or a checkpoint around one (text towers: {', '.join(sorted(_PLAIN))})"
        )
    if text is not config:  # the whole model says whether its two matrices are one
        plain.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", plain.tie_word_embeddings))
    return plain


def load_causal_lm(name: str, config: Any, **options: Any) -> Any:
    """Transformers' causal LM with the weights of a checkpoint.

    Args:
        name: Hub id or local folder.
        config: What ``read_config`` gave.
        options: More arguments of ``from_pretrained``.

    Raises:
        CheckpointError: A tensor that the LM needs is not there.
    """
    from transformers import AutoModelForCausalLM

    plain, local = plain_config(config), Path(name).is_dir()
    kind = AutoModelForCausalLM._model_mapping[type(plain)]
    if plain is config:
        lm, info = kind.from_pretrained(
            name, config=config, output_loading_info=True, local_files_only=local, **options
        )
    else:
        state = _tower_state(name, config, kind.base_model_prefix, local, options["dtype"])
        lm, info = kind.from_pretrained(None, config=plain, state_dict=state, output_loading_info=True, **options)
    _refuse_missing(name, info)
    return lm


def _tower_state(name: str, config: Any, prefix: str, local: bool, dtype: Any) -> dict[str, Tensor]:
    """Tensors of a model's text tower under the names of the plain LM."""
    from transformers import AutoModelForMultimodalLM

    kinds = AutoModelForMultimodalLM._model_mapping
    if type(config) not in kinds:
        raise ValueError(
            f"{config.model_type} is no multimodal LM of transformers, so its text tower cannot be found; "
            "save that as a folder of its own and name it"
        )
    whole, info = _without_towers(kinds[type(config)]).from_pretrained(
        name, config=config, output_loading_info=True, local_files_only=local, dtype=dtype
    )
    _refuse_missing(name, info)
    state = {f"{prefix}.{key}": tensor for key, tensor in whole.get_decoder().state_dict().items()}
    output = whole.get_output_embeddings().weight
    return state if output is whole.get_input_embeddings().weight else state | {"lm_head.weight": output}


def _without_towers(kind: Any) -> Any:
    """The class of a multimodal LM, with its text tower alone.

    It is the class itself in all that transformers asks (name, module), so that renamed and transposed tensors of a
    checkpoint are found as ever.
    """

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)  # without memory: transformers loads on the meta device
        text = self.get_decoder()
        for child, part in self.base_model.named_children():
            if part is not text and all(module is not text for module in part.modules()):
                setattr(self.base_model, child, nn.Module())
        self._keys_to_ignore_on_load_unexpected = {""}  # what the towers would have taken

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


def _refuse_missing(name: str, info: dict[str, Any]) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} tensors of its language model ({', '.join(missing[:3])} ...): "
            "it is incomplete, or of another kind than its config.json says"
        )
