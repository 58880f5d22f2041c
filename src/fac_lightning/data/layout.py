"""Layout: a dialogue becomes one row of backbone positions, with its labels. The rules are all here.

A row is the system turn, then per turn its opening, its content and its closing. Content is one of

* text: the tokens;
* the user's speech: ``<|audio_bos|>``, one position per ``samples_per_position`` samples, ``<|audio_eos|>``;
* the assistant's speech: ``<|audio_bos|>``, positions ``p_1 .. p_M`` that hold a text token *and* a group of codes,
  ``<|audio_eos|>``. Text shorter than speech is followed by ``<|sil|>``. How codes are cut into groups, what leads in
  and what ends, and what becomes of text that is longer than speech, says the reply rule (``fac_lightning.replies``).

Text is learned from the last token of the assistant's opening (which predicts the first of the content) up to
``<|im_end|>`` or, if the rule says so, the newline behind it. Group ``g_i`` is learned from the position before the
one that holds it. Labels are shifted here, once.

Legend: N positions, k frames per group, Q codebooks, C groups put in, H groups to say, U replies, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fac_lightning.prompts import ASR_INSTRUCTION, MODES, SYSTEM_PROMPTS, TTS_INSTRUCTION, ChatFormat, Mode
from fac_lightning.replies import ReplyRule, reply_rule
from fac_lightning.types import IGNORE, SpeechGeometry, pad_code

__all__ = ["Clip", "Cost", "Passage", "Row", "SpokenTurn", "fit_mode", "lay_out", "lay_out_line"]


@dataclass(frozen=True)
class Clip:
    """A user's waveform that is read only when a packed line needs it."""

    num_samples: int  # at the geometry's sample rate
    load: Callable[[], np.ndarray]  # (num_samples,) float32 in [-1, 1], or int16; with a hop, features (T, D)
    hop_length: int = 0  # samples per frame of what a frozen encoder has said of it; 0: samples, nothing was said

    @property
    def length(self) -> int:
        """Samples, or frames, that ``load`` gives."""
        return -(-self.num_samples // self.hop_length) if self.hop_length else self.num_samples


class Cost(NamedTuple):
    """What a row takes of a line."""

    positions: int
    audio_seconds: float  # of the users' clips, which the speech encoder runs over
    speech_tokens: int  # code frames to say, which the speech head runs over


@dataclass(frozen=True)
class SpokenTurn:
    """A turn as layout takes it."""

    role: str  # "user" or "assistant"
    text: str
    clip: Clip | None = None  # the user's speech
    codes: np.ndarray | None = None  # (T, Q) int, the assistant's speech
    seconds: float = 0.0  # of the codes; a clip knows its own
    ids: list[int] | None = None  # tokens of the text, where they are known; not to be changed


@dataclass(frozen=True)
class Passage:
    """Turns that become one row, in a mode that they serve (``fit_mode``)."""

    id: str  # of the dialogue, or of a part of it
    turns: tuple[SpokenTurn, ...]
    mode: str
    system: str | None  # system prompt; that of the mode when None
    context: int = 0  # turns at the beginning that are shown and not learned

    @property
    def row_id(self) -> str:
        """Name of the row."""
        return f"{self.id}/{self.mode}"


@dataclass(frozen=True)
class Row:
    """One dialogue, laid out; all positions count from 0 in this row."""

    id: str  # "<dialogue id>/<mode>"
    text_ids: np.ndarray  # (N,) int64
    text_mask: np.ndarray  # (N,) bool
    text_labels: np.ndarray  # (N,) int64 or IGNORE
    codes: np.ndarray  # (C, k, Q) int64
    code_positions: np.ndarray  # (C,) int64
    speech_positions: np.ndarray  # (H,) int64
    speech_labels: np.ndarray  # (H, k, Q) int64 or IGNORE
    reply_lengths: np.ndarray  # (U,) int64
    feature_positions: np.ndarray  # (F,) int64
    clips: tuple[Clip, ...]  # (A,)
    audio_seconds: float  # of the user's clips
    seconds: float  # of speech, user and assistant
    lost_text: int = 0  # tokens of transcripts for which speech had no position; the rule cuts them

    def __len__(self) -> int:
        """Positions."""
        return len(self.text_ids)

    @property
    def cost(self) -> Cost:
        """What it takes of a line."""
        groups, k, _ = self.speech_labels.shape
        return Cost(len(self.text_ids), self.audio_seconds, groups * k)

    @property
    def num_text_labels(self) -> int:
        """Labelled text tokens."""
        return int(np.count_nonzero(self.text_labels != IGNORE))

    @property
    def num_speech_labels(self) -> int:
        """Labelled codes."""
        return int(np.count_nonzero(self.speech_labels != IGNORE))


def fit_mode(mode: str, turns: Sequence[SpokenTurn]) -> str | None:
    """The mode nearest to ``mode`` that a dialogue can serve, or None.

    A side on which no turn has speech is text: S2M becomes T2M, S2T or T2T, and so does a chain of modality, which
    needs speech on both. Where the text of a spoken user turn is missing, nothing can be transcribed: STC becomes SAC,
    SUC becomes S2M. ASR without the user's speech and TTS without the assistant's are nothing.

    Raises:
        ValueError: There is no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; choose from {', '.join(MODES)}")
    heard = any(t.role == "user" and t.clip is not None for t in turns)
    said = any(t.role == "assistant" and t.codes is not None for t in turns)
    if mode in ("ASR", "TTS"):
        return mode if (heard if mode == "ASR" else said) else None
    nearest = MODES[mode]
    if not heard or not said:
        nearest = Mode(nearest.hears and heard, nearest.speaks and said)
    elif any(t.role == "user" and t.clip is not None and not t.text.strip() for t in turns):
        nearest = nearest._replace(transcribes=False)
    return next(name for name, known in MODES.items() if known == nearest)


def lay_out(
    dialogue_id: str,
    turns: Sequence[SpokenTurn],
    chat: ChatFormat,
    geometry: SpeechGeometry | None = None,
    mode: str = "S2M",
    lead_in: int = 0,
    system: str | None = None,
    reply: ReplyRule | None = None,
    context: int = 0,
) -> Row:
    """Lay a dialogue out as one row.

    Every assistant turn is learned. In a dialogue that can serve the mode (``fit_mode``), a single turn without
    speech stands as text among spoken ones; a chain of modality stands only before speech, and has a transcript only
    of a turn that is heard. ASR pairs each spoken user turn with its own text and TTS each spoken
    assistant turn with its own text; other turns are left out.

    Args:
        dialogue_id: Goes into the row's id.
        turns: The dialogue.
        chat: Token ids of the pieces.
        geometry: Sizes of the model; None where no turn is laid out as speech.
        mode: One of ``prompts.MODES``.
        lead_in: Groups of ``bos`` codes before the first real group.
        system: System prompt; that of the mode when None.
        reply: How spoken replies lie; ``FrameEnd(lead_in)`` when None.
        context: Turns at the beginning that are shown and not learned.

    Raises:
        ValueError: The dialogue cannot serve the mode, speech is asked for without a geometry, or ``lead_in`` and
            ``reply`` are both given.
    """
    if fit_mode(mode, turns) != mode:
        raise ValueError(
            f"dialogue {dialogue_id!r} has no speech for mode {mode}, or no text of it; take the mode fit_mode gives"
        )
    passage = Passage(dialogue_id, tuple(turns), mode, system, context)
    return lay_out_line([passage], chat, geometry, reply_rule(lead_in, reply))[0]


def lay_out_line(
    passages: Sequence[Passage], chat: ChatFormat, geometry: SpeechGeometry | None, reply: ReplyRule
) -> tuple[Row, list[int]]:
    """Lay passages out end to end, as if they were one row; much faster than one by one.

    Args:
        passages: Turns and the mode that they serve.
        chat: Token ids of the pieces.
        geometry: Sizes of the model; None where no turn is laid out as speech.
        reply: How spoken replies lie.

    Returns:
        The row of all, whose positions count from the first passage's beginning, and the positions of each.
    """
    layout, lengths = _Layout(chat, geometry, reply), []
    for passage in passages:
        first = len(layout.ids)
        layout.passage(passage)
        lengths.append(len(layout.ids) - first)
    return layout.row(passages[0].row_id), lengths


class _Layout:
    """Pieces of a row under construction; ``len(ids)`` is the next free position.

    A row is laid out whenever it is trained on, so token ids are kept in one list and become an array once.
    """

    def __init__(self, chat: ChatFormat, geometry: SpeechGeometry | None, reply: ReplyRule) -> None:
        self.chat, self.geometry, self.reply = chat, geometry, reply
        self.ids: list[int] = []
        self.heard: list[tuple[int, int]] = []  # spans [first, last) of the user's speech, where no text is embedded
        self.labels: list[tuple[int, int]] = []  # spans [first, last) whose next token is learned
        self.codes: list[np.ndarray] = []
        self.code_positions: list[np.ndarray] = []
        self.speech_positions: list[np.ndarray] = []
        self.speech_labels: list[np.ndarray] = []
        self.feature_positions: list[np.ndarray] = []
        self.clips: list[Clip] = []
        self.audio_seconds = self.reply_seconds = 0.0
        self.lost_text = 0
        self.learns = True  # the turn at hand is not only shown

    def passage(self, passage: Passage) -> None:
        """Append system turn and turns."""
        mode, system = passage.mode, passage.system
        self.text(self.chat.system(SYSTEM_PROMPTS[mode] if system is None else system))
        heard = None  # the turn before, where it is the user's speech
        for number, turn in enumerate(passage.turns):
            self.learns = number >= passage.context
            if mode == "ASR":
                if turn.role == "user" and turn.clip is not None:
                    self.user(turn, speech=True, after="\n" + ASR_INSTRUCTION)
                    self.assistant(turn, speech=False)
            elif mode == "TTS":
                if turn.role == "assistant" and turn.codes is not None:
                    self.user(turn, speech=False, before=TTS_INSTRUCTION + "\n")
                    self.assistant(turn, speech=True)
            elif turn.role == "user":
                heard = turn if MODES[mode].hears and turn.clip is not None else None
                self.user(turn, speech=heard is not None)
            else:
                how = MODES[mode].given(heard is not None)
                said = (heard.text, heard.ids) if heard else ("", None)
                chain = self.chat.chain(how, said[0], turn.text, said[1], turn.ids)
                self.assistant(turn, speech=how.speaks and turn.codes is not None, chain=chain)
                heard = None

    def text(self, ids: Sequence[int]) -> int:
        """Append positions; returns the first one."""
        first = len(self.ids)
        self.ids.extend(ids)
        return first

    def user(self, turn: SpokenTurn, speech: bool, before: str = "", after: str = "") -> None:
        self.text(self.chat.user_open())
        if speech:
            self._heard(turn)
            if after:
                self.text(self.chat.encode(after))
        elif before or after:
            self.text(self.chat.encode(before + turn.text + after))
        else:
            self.text(self._words(turn))
        self.text(self.chat.close())

    def assistant(self, turn: SpokenTurn, speech: bool, chain: Sequence[int] = ()) -> None:
        self.text(self.chat.assistant_open())
        first = len(self.ids) - 1
        if speech:
            self.text(chain)
            self._said(turn)
        else:
            self.text(self._words(turn))
        end = self.text(self.chat.close())
        if self.learns:
            self.labels.append((first, len(self.ids) - 1 if self.reply.learns_newline else end))

    def _words(self, turn: SpokenTurn) -> list[int]:
        """Tokens of a turn's text."""
        return self.chat.encode(turn.text) if turn.ids is None else turn.ids

    def _heard(self, turn: SpokenTurn) -> None:
        """The user's speech."""
        assert turn.clip is not None
        geometry = self._geometry()
        positions = -(-turn.clip.num_samples // geometry.samples_per_position)
        self.ids.append(self.chat.audio_bos)
        first = self.text([self.chat.audio] * positions)
        self.ids.append(self.chat.audio_eos)
        self.heard.append((first, first + positions))
        places = np.arange(first, first + positions)
        self.feature_positions.append(places)
        if geometry.user_codes:
            group = (positions, geometry.group_size, geometry.num_codebooks)
            self.codes.append(np.full(group, pad_code(geometry.codebook_size), dtype=np.int64))
            self.code_positions.append(places)
        self.clips.append(turn.clip)
        self.audio_seconds += turn.clip.num_samples / geometry.sample_rate

    def _said(self, turn: SpokenTurn) -> None:
        """The assistant's speech, text and codes side by side."""
        assert turn.codes is not None
        said = self.reply.cut(turn.codes, self._geometry())
        tokens, positions = self._words(turn), len(said.codes)
        silent = positions - len(tokens)
        if silent < 0 and not self.reply.text_goes_on:
            self.lost_text -= silent
            tokens = tokens[:positions]
        opening = self.text([self.chat.audio_bos])
        self.ids.extend(tokens)
        self.ids.extend([self.chat.sil] * silent)  # none where it is negative
        self.ids.append(self.chat.audio_eos)
        self.codes.append(said.codes)
        self.code_positions.append(np.arange(opening + 1, opening + 1 + positions))
        self.speech_labels.append(said.labels if self.learns else np.full_like(said.labels, IGNORE))
        self.speech_positions.append(np.arange(opening + said.first, opening + said.first + len(said.labels)))
        self.reply_seconds += turn.seconds

    def _geometry(self) -> SpeechGeometry:
        if self.geometry is None:
            raise ValueError("speech needs a geometry: give SpeechLM.geometry, or use mode T2T for text alone")
        return self.geometry

    def row(self, row_id: str) -> Row:
        ids = np.array(self.ids, dtype=np.int64)
        mask = np.empty(len(ids), dtype=bool)
        mask.fill(True)
        for first, last in self.heard:
            mask[first:last] = False
        labels = np.empty_like(ids)
        labels.fill(IGNORE)
        for first, last in self.labels:
            labels[first:last] = ids[first + 1 : last + 1]
        shape = (0, self.geometry.group_size, self.geometry.num_codebooks) if self.geometry else (0, 1, 1)
        return Row(
            id=row_id,
            text_ids=ids,
            text_mask=mask,
            text_labels=labels,
            codes=_joined(self.codes, shape),
            code_positions=_joined(self.code_positions),
            speech_positions=_joined(self.speech_positions),
            speech_labels=_joined(self.speech_labels, shape),
            reply_lengths=np.array([len(x) for x in self.speech_labels], dtype=np.int64),
            feature_positions=_joined(self.feature_positions),
            clips=tuple(self.clips),
            audio_seconds=self.audio_seconds,
            seconds=self.audio_seconds + self.reply_seconds,
            lost_text=self.lost_text,
        )


def _joined(pieces: Sequence[np.ndarray], shape: tuple[int, ...] = (0,)) -> np.ndarray:
    """Pieces end to end; an empty array of ``shape`` where there is none."""
    if not pieces:
        return np.zeros(shape, dtype=np.int64)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
