"""What crosses the borders between rooms: frozen dataclasses of tensors, a shape comment on every field.

Legend (used everywhere):
    B rows (clips, turns), S samples, T speech frames, Q codebooks, k frames per group (``group_size``),
    N backbone positions of a packed line, R rows packed in the line, D width, V vocabulary.

Masks are ``True`` where a value is kept. Labels that must not be learned are ``IGNORE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "IGNORE",
    "NUM_SPECIAL_CODES",
    "AnswerSums",
    "CodecBatch",
    "HeadOutput",
    "PreferenceBatch",
    "SpeechCodes",
    "SpeechFeatures",
    "SpeechGeometry",
    "SpeechLMOutput",
    "SpeechTextBatch",
    "Waveforms",
    "bos_code",
    "code_rows",
    "code_vocab_size",
    "eos_code",
    "pad_code",
    "to_device",
]

IGNORE = -100
NUM_SPECIAL_CODES = 3

T_ = TypeVar("T_")


def bos_code(codebook_size: int) -> int:
    """Id of the code that leads a reply in; real codes are ``0 .. codebook_size - 1``."""
    return codebook_size


def eos_code(codebook_size: int) -> int:
    """Id of the code that ends a reply."""
    return codebook_size + 1


def pad_code(codebook_size: int) -> int:
    """Id of the code that fills a group after the end; it embeds to zero and is never a label."""
    return codebook_size + 2


def code_vocab_size(codebook_size: int) -> int:
    """Rows of a code embedding table: the codes and the three special ones."""
    return codebook_size + NUM_SPECIAL_CODES


def code_rows(
    codebook_size: int,
    table_rows: int | None = None,
    bos_row: int | None = None,
    eos_row: int | None = None,
    pad_row: int | None = None,
) -> Tensor:
    """Rows ``(codebook_size + 3,)`` of our code ids in a table that other people filled.

    Codes take the rows that no special code has, in order; special codes stand behind them unless they are named.

    Raises:
        ValueError: The table has not enough rows, or a row is named twice.
    """
    special = [codebook_size + place if row is None else row for place, row in enumerate((bos_row, eos_row, pad_row))]
    rows = codebook_size + NUM_SPECIAL_CODES if table_rows is None else table_rows
    free = [row for row in range(rows) if row not in special]
    if (
        len(set(special)) < NUM_SPECIAL_CODES
        or not 0 <= min(special) <= max(special) < rows
        or len(free) < codebook_size
    ):
        raise ValueError(
            f"a table of {rows} rows with bos, eos and pad in the rows {special} does not hold {codebook_size} codes; "
            "name three different rows and give the table codebook_size + 3 rows or more"
        )
    return torch.tensor(free[:codebook_size] + special, device="cpu")  # real also in a model built without memory


@dataclass(frozen=True)
class Waveforms:
    """Mono audio, right padded with zeros."""

    audio: Tensor  # (B, S) float32 in [-1, 1]
    lengths: Tensor  # (B,) int64, samples
    sample_rate: int  # Hz


@dataclass(frozen=True)
class SpeechCodes:
    """Speech tokens on the one code grid of the library."""

    codes: Tensor  # (B, T, Q) int64 in [0, codebook_size), zeros after each length
    lengths: Tensor  # (B,) int64, frames


@dataclass(frozen=True)
class SpeechFeatures:
    """Continuous frames, zero after each length."""

    features: Tensor  # (B, T, D) float
    lengths: Tensor  # (B,) int64, frames
    present: Tensor | None = None  # (B, T) bool, frames that hold something; None: all up to each length


@dataclass(frozen=True)
class CodecBatch:
    """Crops of speech to train a codec with; ``features`` may have been computed before, from the whole sentence."""

    audio: Tensor  # (B, S) float32 in [-1, 1], zeros after each length
    lengths: Tensor  # (B,) int64, samples
    features: Tensor | None = None  # (B, U, D) float, what the codec's feature extractor gives for the crop


@dataclass(frozen=True)
class SpeechGeometry:
    """The numbers that layout must know about a model; ``SpeechLM.geometry`` computes them."""

    sample_rate: int  # Hz of the waveforms that the speech encoder takes
    samples_per_position: int  # encoder hop length x feature group size
    group_size: int  # k, code frames per backbone position
    num_codebooks: int  # Q
    codebook_size: int  # codes per codebook, special codes not counted
    vocab_size: int  # rows of the backbone's text embedding
    user_codes: bool = False  # a group of pad codes stands at every position of user speech, beside the features


@dataclass(frozen=True)
class SpeechTextBatch:
    """One packed line: R rows end to end, no padding; attention never crosses ``lengths``, but into ``parents``.

    A position may carry any of three streams at once: a text token, a group of codes, a group of user speech
    features. Nothing here says that they exclude each other (full duplex uses all three).
    """

    # positions
    text_ids: Tensor  # (N,) int64; anything where text_mask is False
    text_mask: Tensor  # (N,) bool, a text token is embedded here
    position_ids: Tensor  # (N,) int64, restart at 0 in every row
    lengths: Tensor  # (R,) int64 on CPU, positions per row; sums to N
    # labels: already shifted, the label at a position is what must be predicted *from* that position
    text_labels: Tensor  # (N,) int64 or IGNORE
    # input groups of codes
    codes: Tensor  # (C, k, Q) int64 with special codes
    code_positions: Tensor  # (C,) int64 into N
    # groups the speech head must say, reply after reply
    speech_positions: Tensor  # (H,) int64 into N: whose hidden state conditions the group
    speech_labels: Tensor  # (H, k, Q) int64 or IGNORE
    reply_lengths: Tensor  # (U,) int64 on CPU, groups per reply; sums to H
    # user speech
    audio: Waveforms  # (A, S) at geometry.sample_rate
    feature_positions: Tensor  # (F,) int64 into N, clip after clip
    # bookkeeping
    capacity: int  # positions the line could have held
    seconds: float  # audio seconds in the line, user and assistant
    text_token_total: int  # labelled text tokens of the whole optimizer step on this rank (all micro-batches)
    speech_token_total: int  # labelled speech tokens of the whole optimizer step on this rank
    ids: tuple[str, ...] = ()  # (R,) "<cut id>/<mode>" of the rows
    parents: Tensor | None = None  # (R,) int64 on CPU: the row whose positions come before this one's too; -1 for none
    sources: tuple[str, ...] = ()  # where each dialogue or pair of the line comes from, by the names of the mix
    heard: SpeechFeatures | None = None  # (A, T, D) what a frozen encoder has said of the clips; audio is then empty
    left_out: tuple[tuple[str, str], ...] = ()  # source and reason of what should be here and cannot be read

    def to(self, device: torch.device | str) -> SpeechTextBatch:
        """See ``to_device``; the name by which Lightning moves batches."""
        return to_device(self, device)


@dataclass(frozen=True)
class AnswerSums:
    """One number per answer and stream of P pairs: summed log-probabilities, or how many labels those have."""

    text: Tensor  # (2, P) float32, chosen answers first
    speech: Tensor  # (2, P) float32; 0 where an answer has no speech


@dataclass(frozen=True)
class PreferenceBatch:
    """P pairs of answers in one packed line.

    Answer ``p`` is the chosen one of pair ``p``, answer ``P + p`` the rejected. Labels weigh in the log-probability of
    their answer: 0 before the answer (earlier turns are not compared) and where silence would drown the words.
    """

    line: SpeechTextBatch  # the rows of all pairs
    text_answers: Tensor  # (N,) int64 in [0, 2 P), whose answer a position belongs to
    text_weights: Tensor  # (N,) float32, of the text label at each position
    speech_answers: Tensor  # (H,) int64 in [0, 2 P)
    speech_weights: Tensor  # (H, k, Q) float32, of the speech labels
    tasks: Tensor  # (P,) int64 into task_names
    weights: Tensor  # (P,) float32, of the pairs
    task_totals: Tensor  # (K,) int64, pairs of each task in the whole optimizer step on this rank
    task_names: tuple[str, ...]  # (K,)
    reference: AnswerSums | None = None  # stored log-probabilities of the reference model
    ids: tuple[str, ...] = ()  # (P,)

    @property
    def num_pairs(self) -> int:
        """Pairs, P."""
        return self.tasks.shape[0]

    def to(self, device: torch.device | str) -> PreferenceBatch:
        """See ``to_device``; the name by which Lightning moves batches."""
        return to_device(self, device)


@dataclass(frozen=True)
class HeadOutput:
    """What a speech head says of its labels."""

    logprobs: Tensor  # (H, k, Q) float32, log-probability of each label; 0 where mask is False
    correct: Tensor  # (H, k, Q) bool, the label is the most likely code
    mask: Tensor  # (H, k, Q) bool


@dataclass(frozen=True)
class SpeechLMOutput:
    """Log-probabilities of the labelled tokens only; sums and counts, so that callers normalise by tokens."""

    text_logprobs: Tensor  # (M,) float32, one per labelled text position
    text_correct: Tensor  # (M,) bool
    text_positions: Tensor  # (M,) int64 into N
    speech: HeadOutput  # (H, k, Q)
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)  # slot -> (), what its part adds to the loss

    @property
    def text_loss_sum(self) -> Tensor:
        """Summed negative log-likelihood of text, nats; 0 for an empty stream. Shape ``()``."""
        return -self.text_logprobs.sum()

    @property
    def text_count(self) -> int:
        """Labelled text tokens."""
        return self.text_logprobs.numel()

    @property
    def speech_loss_sum(self) -> Tensor:
        """Summed negative log-likelihood of speech codes, nats; 0 for an empty stream. Shape ``()``."""
        return -self.speech.logprobs.sum()

    @property
    def speech_count(self) -> Tensor:
        """Labelled speech codes. Shape ``()``."""
        return self.speech.mask.sum()


def to_device(value: T_, device: torch.device | str) -> T_:
    """Copy of a dataclass of tensors with every tensor on ``device``, except the per-row lengths kept on CPU."""
    changes: dict[str, Any] = {}
    for entry in fields(value):  # type: ignore[arg-type]
        item = getattr(value, entry.name)
        if isinstance(item, Tensor) and not (
            isinstance(value, SpeechTextBatch) and entry.name in ("lengths", "reply_lengths", "parents")
        ):
            changes[entry.name] = item.to(device, non_blocking=True)
        elif isinstance(item, Waveforms | SpeechFeatures | SpeechTextBatch | AnswerSums):
            changes[entry.name] = to_device(item, device)
    return replace(value, **changes)  # type: ignore[type-var]
