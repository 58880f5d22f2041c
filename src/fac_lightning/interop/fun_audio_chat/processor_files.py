"""The files of a processor: two tokenizers, a feature extractor, names and sizes, and a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fac_lightning.weights import CheckpointError

__all__ = ["TOKEN_NAMES", "local_folder", "read_processor", "write_processor"]

#: arguments of the processor that are names of tokens, by their keys in ``processor_config.json``
TOKEN_NAMES = ("audio_token", "audio_bos_token", "audio_eos_token", "audio_pad_token")
SPEECH_TOKENIZER = "speech_tokenizer"  # sub-folder
PROCESSOR_CONFIG = "processor_config.json"
EXTRACTOR_CONFIG = "preprocessor_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
SMALL_FILES = ["*.json", "*.jinja", "*.txt", f"{SPEECH_TOKENIZER}/*"]  # all of a checkpoint but its weights
WEIGHT_FILES = ["*.safetensors"]


def local_folder(name: str | Path, weights: bool = False) -> Path:
    """The folder of a checkpoint; of a hub id the small files are fetched, and the weights when asked for.

    Raises:
        CheckpointError: There is neither.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(str(name), allow_patterns=[*SMALL_FILES, *WEIGHT_FILES] if weights else SMALL_FILES)
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{str(name)!r} is no folder, and no hub id that can be fetched ({reason})") from error


def read_processor(folder: Path) -> dict[str, Any]:
    """Arguments of ``FunAudioChatProcessor`` from a checkpoint's folder, those that it tells.

    Raises:
        CheckpointError: A file is missing or damaged, or two of them disagree.
    """
    text, speech = _load_tokenizer(folder), _load_tokenizer(folder / SPEECH_TOKENIZER)
    settings = _read_json(folder / PROCESSOR_CONFIG) if (folder / PROCESSOR_CONFIG).is_file() else {}
    sizes = {
        f"{SPEECH_TOKENIZER}/{TOKENIZER_CONFIG}": speech.init_kwargs.get("audio_group_size"),
        PROCESSOR_CONFIG: settings.get("audio_group_size"),
    }
    said = {file: size for file, size in sizes.items() if size is not None}
    if len(set(said.values())) > 1:
        values = " and ".join(f"{value} in {file}" for file, value in said.items())
        raise CheckpointError(f"{folder}: audio_group_size is {values}; they must agree, correct one")
    arguments = {
        "text_tokenizer": text,
        "speech_tokenizer": speech,
        "feature_extractor": _load_extractor(folder / EXTRACTOR_CONFIG),
        "chat_template": _chat_template(folder, settings),
        "group_size": next(iter(said.values()), None),
        "sample_rate": settings.get("audio_sampling_rate"),
        # What the text tokenizer says of itself comes first, as in the released processor.
        **{name: getattr(text, name, None) or settings.get(name) for name in TOKEN_NAMES},
    }
    return {name: value for name, value in arguments.items() if value is not None}


def write_processor(
    folder: Path,
    text_tokenizer: Any,
    speech_tokenizer: Any,
    feature_extractor: Any,
    chat_template: str,
    settings: Mapping[str, Any],
) -> None:
    """Write what ``read_processor`` and the released processor (transformers 4) read."""
    for tokenizer, place in ((text_tokenizer, folder), (speech_tokenizer, folder / SPEECH_TOKENIZER)):
        tokenizer.save_pretrained(str(place))
        _write_json(place / TOKENIZER_CONFIG, _for_transformers_4(_read_json(place / TOKENIZER_CONFIG)))
    feature_extractor.save_pretrained(str(folder))
    _write_json(folder / PROCESSOR_CONFIG, settings)
    (folder / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")


def _load_tokenizer(folder: Path) -> Any:
    """A transformers tokenizer of a local folder; no code of the folder is run."""
    from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    if not (folder / TOKENIZER_CONFIG).is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_CONFIG}; Fun-Audio-Chat has a tokenizer there")
    try:
        if (folder / "tokenizer.json").is_file():
            # This file says all. A class that is named beside it may be of another version, or code of the checkpoint.
            return PreTrainedTokenizerFast.from_pretrained(str(folder))
        # With a configuration of its own, transformers does not look for the model's, whose type it does not know.
        return AutoTokenizer.from_pretrained(str(folder), config=PreTrainedConfig(), trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain exceptions for a damaged file
        raise CheckpointError(f"{folder}: its tokenizer cannot be loaded ({error})") from error


def _load_extractor(file: Path) -> Any:
    from transformers import WhisperFeatureExtractor

    if not file.is_file():
        raise CheckpointError(f"{file.parent} has no {file.name}, so nothing says how speech becomes features")
    try:
        return WhisperFeatureExtractor.from_dict(_read_json(file))
    except TypeError as error:
        raise CheckpointError(f"{file} does not describe a Whisper feature extractor ({error})") from error


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / CHAT_TEMPLATE).is_file():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    older = folder / "chat_template.json"
    found = (_read_json(older) if older.is_file() else settings).get("chat_template")
    return None if found is None else str(found)


def _for_transformers_4(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a tokenizer without what transformers 5 alone reads: the released code needs version 4."""
    changed = {key: value for key, value in settings.items() if key not in ("backend", "is_local", "local_files_only")}
    if changed.get("tokenizer_class") == "TokenizersBackend":
        changed["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(changed.get("extra_special_tokens"), list):
        changed["additional_special_tokens"] = changed.pop("extra_special_tokens")
    return changed


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__} where a JSON object is due")
    return content


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
