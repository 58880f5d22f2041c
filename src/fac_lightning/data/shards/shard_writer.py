"""One shard is written: its tars, its manifest, its index, each under its name only when all are whole."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fac_lightning.data.shards.features import FeatureMaker
from fac_lightning.data.shards.index import FieldIndex, ShardIndex
from fac_lightning.data.shards.names import draft_name, index_name, manifest_name, tar_name
from fac_lightning.data.shards.records import CODES, FEATURES, TEXTS, CodesOf
from fac_lightning.data.shards.shard_content import ShardContent, ShardTask
from fac_lightning.data.shards.tar import TarField
from fac_lightning.data.shards.texts import TextMaker

__all__ = ["ShardWriter"]

T_ = TypeVar("T_")

HEARD_SECONDS = 240.0  # of users that are in memory at once where an encoder hears them
CODE_DTYPES = ("|u1", "<u2", "<i4")  # smallest first


@dataclass(frozen=True)
class ShardWriter:
    """Writes shards of one folder.

    Equal dialogues give equal bytes, but for Opus, whose streams carry a random number.
    """

    folder: Path
    fields: tuple[str, ...]  # the same in every shard
    audio: str | None  # a key of AUDIO_FORMATS; None keeps no audio
    codes_of: CodesOf | None
    skip_bad: bool = False
    features: FeatureMaker | None = None  # None keeps none
    texts: TextMaker | None = None  # None keeps none

    def __call__(self, task: ShardTask) -> ShardIndex:
        """Write a shard, or take the one that is there and whole.

        Raises:
            BadData: A dialogue cannot be stored and ``skip_bad`` is not set.
        """
        found = self._finished(task.number)
        return self._write(task) if found is None else found

    def _finished(self, number: int) -> ShardIndex | None:
        """Index of a shard that an earlier run has finished."""
        file = self.folder / index_name(number)
        if not file.is_file():
            return None
        index = ShardIndex.from_json(file.read_bytes(), str(file))
        files = {self.folder / tar_name(name, number): one.bytes for name, one in index.fields.items()}
        whole = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
        whole &= (self.folder / manifest_name(number)).is_file() and sorted(index.fields) == sorted(self.fields)
        return index if whole else None

    def _write(self, task: ShardTask) -> ShardIndex:
        drafts = {name: self.folder / draft_name(tar_name(name, task.number)) for name in self.fields}
        dtype = self._code_dtype(task.codes.values())
        columns = next((codes.shape[1] for codes in task.codes.values()), 1)
        with ExitStack() as opened:
            tars = {name: opened.enter_context(TarField(draft)) for name, draft in drafts.items()}
            shard = ShardContent(tars, self.audio, self.codes_of, dtype, self.features, self.texts)
            refused: dict[str, str] = {}
            for cuts in _portions(task.cuts, HEARD_SECONDS if self.features is not None else 0.0):
                tried = [self._tried(refused, cut.id, partial(shard.read, cut, task)) for cut in cuts]
                read = [one for one in tried if one is not None]
                shard.hear(read)
                for one in read:
                    self._tried(refused, one.cut.id, partial(shard.write, one))
            left_out = [{"id": cut.id, "reason": refused[cut.id]} for cut in task.cuts if cut.id in refused]
            kinds = {CODES: (dtype, columns)}
            if self.features is not None:
                kinds[FEATURES] = (self.features.dtype, self.features.encoder.dim)
            if self.texts is not None:
                kinds[TEXTS] = (self.texts.dtype, 1)
            fields = {name: tar.finish(*kinds.get(name, ())) for name, tar in tars.items()}
        return self._publish(task.number, fields, shard, left_out)

    def _tried(self, refused: dict[str, str], name: str, step: Callable[[], T_]) -> T_ | None:
        """What a step gives; the reason is kept where a dialogue cannot be stored and may be left out."""
        try:
            return step()
        except (ValueError, OSError) as error:
            if not self.skip_bad:
                raise
            refused[name] = str(error)
            return None

    def _publish(
        self, number: int, fields: dict[str, FieldIndex], shard: ShardContent, left_out: list[dict[str, str]]
    ) -> ShardIndex:
        """Give everything its name, the index last: a shard that has one is whole."""
        lines = "".join(shard.lines).encode()
        digest = hashlib.blake2b(lines, digest_size=8).hexdigest()
        index = ShardIndex(len(shard.lines), digest, fields, {**shard.counts, "left_out": left_out})
        texts = {
            manifest_name(number): gzip.compress(lines, 6, mtime=0),
            index_name(number): index.to_json().encode(),
        }
        for name, data in texts.items():
            (self.folder / draft_name(name)).write_bytes(data)
        for name in [*(tar_name(one, number) for one in fields), *texts]:
            os.replace(self.folder / draft_name(name), self.folder / name)
        return index

    def _code_dtype(self, codes: Any) -> str:
        """The smallest type that takes every code of the tokenizer, or of the shard where no tokenizer is known."""
        largest = self.codes_of.largest if self.codes_of is not None else None
        if largest is None:
            largest = max((int(one.max()) for one in codes), default=0)
        return next(name for name in CODE_DTYPES if largest <= np.iinfo(name).max)


def _portions(cuts: Sequence[Any], seconds: float) -> Iterator[list[Any]]:
    """Cuts in their order, as many at a time as have so much sound of the user; one where ``seconds`` is 0."""
    taken: list[Any] = []
    sound = 0.0
    for cut in cuts:
        taken.append(cut)
        sound += cut.duration if cut.has_recording else 0.0
        if sound >= seconds:
            yield taken
            taken, sound = [], 0.0
    if taken:
        yield taken
