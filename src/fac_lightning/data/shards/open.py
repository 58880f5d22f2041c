"""What a path of ``data.train`` means: a dialogues folder, or shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path

from fac_lightning.data.corpus import Corpus
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.mode_schedule import ModeSchedule
from fac_lightning.data.row_source import RowSource
from fac_lightning.data.shards.corpus import ShardCorpus
from fac_lightning.data.shards.names import MANIFEST
from fac_lightning.data.shards.storage import is_url, remote_system
from fac_lightning.prompts import ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import SpeechGeometry

__all__ = ["expand_paths", "holds_shards", "open_source"]


def open_source(
    paths: Sequence[str | Path],
    chat: ChatFormat,
    geometry: SpeechGeometry | None,
    tokenizer: SpeechTokenizer | None,
    modes: Mapping[str, float],
    system_prompts: Mapping[str, str] | None = None,
    reply: ReplyRule | None = None,
    cache_audio: bool = True,
    progress: bool = True,
    mode_schedule: ModeSchedule | None = None,
    limits: IntakeLimits | None = None,
    max_bad_share: float = 0.01,
    features: bool = False,
) -> RowSource:
    """The dialogues that paths name, all of one kind: a ``ShardCorpus`` of shards, else a ``Corpus``.

    Args:
        paths: Folders, manifests, patterns (``shards/*``), or URLs of shards.
        chat: Token ids.
        geometry: Sizes of the model; None for text alone.
        tokenizer: Makes the codes of a ``Corpus``; must be that of the codes of shards.
        modes: Weight of each mode.
        system_prompts: Prompts that replace those of the modes.
        reply: How spoken replies lie.
        cache_audio: Keep the users' waveforms of a ``Corpus``; those of shards are never kept.
        progress: Show a bar while codes are made.
        mode_schedule: How the weights change.
        limits: What a ``Corpus`` accepts; of shards, the lengths of turns and recordings and the size of a member.
        max_bad_share: Of the dialogues of a ``Corpus``.
        features: Take the encoder's features that shards hold, and no sound.

    Raises:
        FileNotFoundError: A pattern fits nothing.
        ValueError: Dialogues folders and shards stand in one list.
    """
    found = expand_paths(paths)
    shards = [path for path in found if holds_shards(path)]
    if features and len(shards) < len(found):
        other = next(path for path in found if path not in shards)
        raise ValueError(
            f"{other} holds no shards and data.features asks for features: write them with 'fac data shard --features "
            "ENCODER', or set data.features to false"
        )
    if not shards:
        rest = (system_prompts, reply, cache_audio, progress, mode_schedule, limits, max_bad_share)
        return Corpus(found, chat, geometry, tokenizer, modes, *rest)
    if len(shards) < len(found):
        other = next(path for path in found if path not in shards)
        raise ValueError(
            f"{shards[0]} holds shards and {other} does not: one source is of one kind. Write shards of both "
            "(fac data shard), or name them as sources of their own"
        )
    settings = (chat, geometry, tokenizer, modes, system_prompts, reply, mode_schedule)
    return ShardCorpus(shards, *settings, features=features, limits=limits)


def holds_shards(path: str | Path) -> bool:
    """Whether a path names shards: a URL, a folder with ``cuts.000000.jsonl.gz`` and so on, or some of these files."""
    path = str(path)
    if is_url(path):
        return True
    if path.endswith((".jsonl", ".jsonl.gz")):
        name = Path(path).name
        return MANIFEST.match(name) is not None and name != "cuts.jsonl" and any(Path(path).parent.glob("*.tar"))
    folder = Path(path)
    if not folder.is_dir() or (folder / "cuts.jsonl").is_file():
        return False
    return any(MANIFEST.match(file.name) for file in folder.glob("cuts*.jsonl*"))


def expand_paths(paths: Sequence[str | Path]) -> list[str]:
    """Paths with patterns replaced by the folders that they fit, in order; patterns of manifests are kept.

    Raises:
        FileNotFoundError: A pattern fits nothing.
    """
    found: list[str] = []
    for path in map(str, paths):
        if not has_magic(path) or path.endswith((".jsonl", ".jsonl.gz")):
            found.append(path)
            continue
        fits = _remote_glob(path) if is_url(path) else sorted(glob(path))
        if not fits:
            raise FileNotFoundError(f"nothing fits {path}; name dialogues folders or shards")
        found += fits
    return found


def _remote_glob(url: str) -> list[str]:
    fs, pattern = remote_system(url)
    chain = url.split("::")  # such as filecache::s3://bucket/*, of which a path comes back without the cache
    place = next(i for i, link in enumerate(chain) if is_url(link))
    found = [fs.unstrip_protocol(path) for path in sorted(fs.glob(pattern))]
    return ["::".join([*chain[:place], path, *chain[place + 1 :]]) for path in found]
