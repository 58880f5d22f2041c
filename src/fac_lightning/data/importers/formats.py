"""The formats that can be imported, and what a source looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fac_lightning.data.importers.base import DialogueImport
from fac_lightning.data.importers.column_map import COLUMN_MAPS
from fac_lightning.data.importers.fun_audio_chat import FunAudioChatImport
from fac_lightning.data.importers.hugging_face import HuggingFaceImport
from fac_lightning.data.importers.json_records import first_record, is_json
from fac_lightning.data.importers.kaldi import KaldiImport
from fac_lightning.data.importers.lhotse_cuts import LhotseImport
from fac_lightning.data.importers.moshi import MoshiImport
from fac_lightning.data.importers.nemo import NemoImport
from fac_lightning.data.importers.shar_records import is_shar
from fac_lightning.data.importers.sharded_names import expand_shards
from fac_lightning.data.importers.sharegpt import DESCRIPTION, ShareGPTImport
from fac_lightning.data.importers.slam_omni import SlamOmniImport
from fac_lightning.data.importers.sound_folder import SOUND_ENDINGS, SoundFolderImport
from fac_lightning.data.importers.table_rows import TABLES, open_rows

__all__ = ["IMPORT_FORMATS", "ImportFormat", "guess_format"]


@dataclass(frozen=True)
class ImportFormat:
    """A format by its name."""

    job: Callable[..., FunAudioChatImport | DialogueImport]
    about: str  # one line


IMPORT_FORMATS = {
    "fun-audio-chat": ImportFormat(FunAudioChatImport, "Fun-Audio-Chat's training JSON lines"),
    "sharegpt": ImportFormat(ShareGPTImport, "LLaMA-Factory's ShareGPT with audios; dataset_info.json"),
    "hf": ImportFormat(HuggingFaceImport, "Hugging Face datasets with columns of audio: parquet, arrow, JSON, hub"),
    "slam-omni": ImportFormat(SlamOmniImport, "SLAM-Omni's parquet and JSON lines, replies as codes"),
    "moshi": ImportFormat(MoshiImport, "moshi-finetune's stereo recordings with word alignments"),
    "nemo": ImportFormat(NemoImport, "NeMo's manifests, plain and tarred"),
    "kaldi": ImportFormat(KaldiImport, "Kaldi's data directories"),
    "lhotse": ImportFormat(LhotseImport, "lhotse's CutSets and Shar folders, NeMo's duplex cuts"),
    "sounds": ImportFormat(SoundFolderImport, "a folder of wav and txt files"),
}


def guess_format(source: Path, written: str) -> tuple[str, str]:
    """Format of a source, and by what it is known.

    Args:
        source: Where it would be on disk.
        written: As the user wrote it.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It looks like none of them.
    """
    files = [source.parent / name for name in expand_shards(source.name)]
    if source.is_dir():
        found = _of_folder(source)
    elif all(file.is_file() for file in files):
        found = _of_file(files[0])
    elif source.exists() or source.suffix or written.count("/") != 1:
        raise FileNotFoundError(f"{written} does not exist; name the file or folder to import")
    else:
        found = "hf", "nothing is on disk, so it is a dataset of the hub"
    if found is None:
        raise ValueError(f"{written} looks like none of {', '.join(IMPORT_FORMATS)}; name its format instead of 'auto'")
    return found


def _of_folder(folder: Path) -> tuple[str, str] | None:
    if is_shar(folder):
        return "lhotse", "a Shar folder"
    if (folder / "wav.scp").is_file():
        return "kaldi", "it has wav.scp"
    if (folder / "tarred_audio_manifest.json").is_file():
        return "nemo", "it has tarred_audio_manifest.json"
    if any(path.suffix in TABLES for path in folder.rglob("*")):
        return _of_table(folder)
    if (folder / DESCRIPTION).is_file() and _of_file(folder / DESCRIPTION):
        return "sharegpt", f"it has {DESCRIPTION}"
    if any(path.suffix.lower() in SOUND_ENDINGS for path in folder.rglob("*")):
        return "sounds", "it has recordings"
    return None


def _of_file(file: Path) -> tuple[str, str] | None:
    if file.suffix in TABLES:
        return _of_table(file)
    if not is_json(file):
        return None
    if file.name == DESCRIPTION:
        return "sharegpt", DESCRIPTION
    first: dict[str, Any] = first_record(file) or {}
    keys = first.keys()
    if "supervisions" in keys or ("recording" in keys and "duration" in keys):
        return "lhotse", "a line is a cut"
    if "audio_filepath" in keys:
        return "nemo", "a line has audio_filepath"
    if {"path", "duration"} <= keys:
        return "moshi", "a line has path and duration"
    if "messages" in keys and "audio" in keys:
        return "fun-audio-chat", "a line has messages and audio"
    if {"messages", "conversations"} & keys:
        return "sharegpt", "a record has messages"
    return _of_columns(list(keys))


def _of_table(source: Path) -> tuple[str, str]:
    try:
        columns = open_rows(source, str(source)).columns
    except ValueError:  # a split is missing, or pyarrow: the import itself says so
        columns = []
    return _of_columns(columns) or ("hf", "a table")


def _of_columns(columns: list[str]) -> tuple[str, str] | None:
    for name, one in COLUMN_MAPS.items():
        if columns and not one.missing(columns):
            kind = "slam-omni" if name.startswith("slam-omni") else "hf"
            return kind, f"its columns are those of the map {name}"
    return None
