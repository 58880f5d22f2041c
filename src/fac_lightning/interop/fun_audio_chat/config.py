"""The released configuration read as arguments of our parts; nothing about sizes or ids stands in code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fac_lightning.adapters import AddFusion, FunAudioCodeGrouping, MeanFusion, MeanGrouping
from fac_lightning.backbones import HFBackbone
from fac_lightning.encoders import FunAudioEncoder
from fac_lightning.encoders.fun_audio_tower import fun_audio_sizes
from fac_lightning.heads import FunAudioHead
from fac_lightning.models import SpeechLM
from fac_lightning.weights import CheckpointError

__all__ = ["MODEL_TYPE", "build_model", "check_config", "part_arguments", "recipe_node"]

MODEL_TYPE = "funaudiochat"
ARCHITECTURE = "FunAudioChatForConditionalGeneration"

#: Where a part of the model comes from in a recipe.
_ROOMS: dict[type, str] = {
    AddFusion: "adapters",
    FunAudioCodeGrouping: "adapters",
    FunAudioEncoder: "encoders",
    FunAudioHead: "heads",
    HFBackbone: "backbones",
    MeanFusion: "adapters",
    MeanGrouping: "adapters",
}
#: Of ``text_config``: not of the backbone, but of how the streams meet.
_STREAM_IDS = ("audio_bos_index", "audio_eos_index", "sil_index")

Parts = dict[str, tuple[type, dict[str, Any]]]


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that is not Fun-Audio-Chat's.

    Raises:
        CheckpointError: Names what it is, or what it lacks.
    """
    kind, names = config.get("model_type"), config.get("architectures") or []
    if kind != MODEL_TYPE and ARCHITECTURE not in names:
        what = names[0] if names else kind or "nothing it could be known by"
        raise CheckpointError(
            f"{where} describes {what}, not {MODEL_TYPE}; give a Fun-Audio-Chat checkpoint "
            "(a text LLM alone is a backbone: fac_lightning.backbones.HFBackbone)"
        )
    audio, text = config.get("audio_config"), config.get("text_config")
    if not isinstance(audio, Mapping) or not isinstance(text, Mapping):
        raise CheckpointError(f"{where} has no audio_config and text_config; the file is not complete")
    needed = ("group_size", "codebook_size", "output_dim", "bos_token_id", "eos_token_id", "pad_token_id")
    lacking = [f"audio_config.{name}" for name in needed if not isinstance(audio.get(name), int)]
    lacking += [f"text_config.{name}" for name in (*_STREAM_IDS, "hidden_size") if not isinstance(text.get(name), int)]
    lacking += [] if isinstance(config.get("audio_token_index"), int) else ["audio_token_index"]
    if audio.get("enable_audio_invert_tower", True) and not isinstance(audio.get("crq_transformer_config"), Mapping):
        lacking.append("audio_config.crq_transformer_config")
    if lacking:
        raise CheckpointError(f"{where} lacks {', '.join(lacking)}; the file is not complete")
    if audio["output_dim"] != text["hidden_size"]:
        raise CheckpointError(
            f"{where}: audio_config.output_dim ({audio['output_dim']}) must be text_config.hidden_size "
            f"({text['hidden_size']})"
        )


def part_arguments(
    config: Mapping[str, Any], dtype: str = "float32", codebook_size: int | None = None, checkpointing: bool = False
) -> Parts:
    """Slot -> class and arguments of a released configuration (as ``config.json`` holds it).

    Args:
        config: Checked.
        dtype: Of the backbone, a name in ``torch``.
        codebook_size: Real codes, as the speech tokenizer knows them; those below the first special id when None.
        checkpointing: Recompute layers in the backward pass.
    """
    audio, dim = config["audio_config"], config["text_config"]["hidden_size"]
    table = {
        "table_rows": audio["codebook_size"],
        "bos_row": audio["bos_token_id"],
        "eos_row": audio["eos_token_id"],
        "pad_row": audio["pad_token_id"],
    }
    special = [table["bos_row"], table["eos_row"], table["pad_row"]]
    codes = codebook_size or min(special) or audio["codebook_size"] - len(set(special))
    group_size, more = audio["group_size"], {"gradient_checkpointing": True} if checkpointing else {}
    parts: Parts = {
        "backbone": (HFBackbone, {"config": _text_config(config["text_config"]), "dtype": dtype, **more}),
        "encoder": (FunAudioEncoder, {**fun_audio_sizes(audio), **more}),
        "feature_adapter": (MeanGrouping, {"in_dim": dim, "group_size": group_size, "dim": dim}),
        "code_adapter": (
            FunAudioCodeGrouping,
            {"codebook_size": codes, "group_size": group_size, "dim": dim, **table},
        ),
        # any mode but "add" replaces, as in the released code
        "fusion": (AddFusion if audio.get("continuous_features_mode", "replace") == "add" else MeanFusion, {}),
    }
    if audio.get("enable_audio_invert_tower", True):
        crq = {name: value for name, value in audio["crq_transformer_config"].items() if not name.startswith("_")}
        parts["head"] = (
            FunAudioHead,
            {
                "dim": dim,
                "group_size": group_size,
                "codebook_size": codes,
                "transformer": _differences(crq),
                **table,
                **more,
            },
        )
    return parts


def build_model(parts: Parts) -> SpeechLM:
    """The model of ``part_arguments``, with random weights."""
    return SpeechLM(**{slot: part(**arguments) for slot, (part, arguments) in parts.items()})


def recipe_node(parts: Parts) -> dict[str, Any]:
    """The same as the ``model`` node of a recipe."""
    slots = {
        slot: {"_target_": f"fac_lightning.{_ROOMS[part]}.{part.__name__}", **arguments}
        for slot, (part, arguments) in parts.items()
    }
    return {"_target_": "fac_lightning.models.SpeechLM", **slots}


def _text_config(entries: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``text_config`` makes the backbone."""
    return _differences({name: value for name, value in entries.items() if name not in _STREAM_IDS})


def _differences(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a transformers configuration that are not its defaults, in today's names."""
    from transformers import AutoConfig

    known = {name: value for name, value in entries.items() if name not in ("model_type", "torch_dtype", "dtype")}
    kind = entries.get("model_type", "qwen2")  # the released code's default
    try:
        config = AutoConfig.for_model(kind, **known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"transformers does not make a {kind!r} of the configuration: {error}") from error
    changed = config.to_diff_dict()
    for name in ("architectures", "transformers_version", "_name_or_path", "torch_dtype", "dtype"):
        changed.pop(name, None)
    # written out also where it is the default of today: defaults change, weights do not
    for name in ("hidden_size", "num_hidden_layers", "vocab_size", "tie_word_embeddings"):
        changed[name] = getattr(config, name)
    return {"model_type": kind, **changed}
