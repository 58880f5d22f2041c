"""Pieces of speech, wherever they lie: in dialogues, or as files in a folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from fac_lightning.data.audio import Span
from fac_lightning.data.dialogue import read_cuts, turn_span
from fac_lightning.data.distortions.clip_files import ClipFiles
from fac_lightning.data.lhotse_setup import import_lhotse

__all__ = ["SIDES", "clip_spans", "shortened"]

log = logging.getLogger(__name__)

SIDES = {"user": ("user",), "assistant": ("assistant",), "both": ("user", "assistant")}


def clip_spans(source: str | Path, side: str = "both") -> list[Span]:
    """Every spoken turn of a dialogues folder or manifest; every file of a folder of sound files, or a file alone.

    Of files with several channels the first is taken, and a warning says how many there are.

    Args:
        source: A folder with ``cuts.jsonl``, a manifest, or sound files (folders inside are searched too).
        side: Whose turns: user, assistant or both.

    Raises:
        FileNotFoundError: There is nothing of the kind.
        ValueError: No turn of this side has audio, or a file cannot be read.
    """
    path = Path(source)
    if not ((path.is_dir() and (path / "cuts.jsonl").is_file()) or path.name.endswith((".jsonl", ".jsonl.gz"))):
        spans = [span for file in ClipFiles(str(path)).files if (span := _whole(file)).count]
        if several := sum(span.channel is not None for span in spans):
            log.warning("%d of %d files in %s have several channels; the first is taken", several, len(spans), path)
        return spans
    turns = (
        turn_span(cut, i)
        for cut in read_cuts(path)
        for i, supervision in enumerate(cut.supervisions)
        if supervision.speaker in SIDES[side]
    )
    spans = [span for span in turns if span is not None and span.count]
    if not spans:
        raise ValueError(f"{path}: no turn of {side} has audio; name the other side, or dialogues that are spoken")
    return spans


def shortened(span: Span, first: int, count: int) -> Span:
    """``count`` samples of a span from ``first`` on, at the recording's rate."""
    return replace(span, first=span.first + first, count=min(count, span.count - first))


def _whole(file: Path) -> Span:
    lhotse = import_lhotse()
    import soundfile
    from lhotse.audio import AudioSource

    try:
        told = soundfile.info(str(file))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    source = AudioSource(type="file", channels=list(range(told.channels)), source=str(file))
    recording = lhotse.Recording(
        id=file.name,
        sources=[source],
        sampling_rate=told.samplerate,
        num_samples=told.frames,
        duration=told.frames / told.samplerate,
    )
    return Span(recording, 0, told.frames, 0 if told.channels > 1 else None)
