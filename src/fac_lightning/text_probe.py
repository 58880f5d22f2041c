"""What a text LLM knows of a fixed set of written questions: rows, scores by teacher forcing, distance from a base.

Training follows such a set to see what is forgotten and evaluation to see what is known, and neither knows the other.

Legend: N positions of a packed line, R rows in it, M answer tokens (of a line, or of all lines in order), A answers,
V vocabulary, K log-probabilities kept of each token.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fac_lightning.prompts import ChatFormat

__all__ = [
    "TextBaseline",
    "TextLM",
    "TextLine",
    "TextScores",
    "WrittenDialogue",
    "lay_out_texts",
    "read_texts",
    "score_texts",
    "set_digest",
    "take_baseline",
]

#: Log-probabilities (M x V) up to which a baseline keeps whole distributions: 64 MiB.
WHOLE_ELEMENTS = 2**24
#: Logits (rows x V) that are there at once: 256 MiB.
CHUNK_ELEMENTS = 2**26


@dataclass(frozen=True)
class WrittenDialogue:
    """Turns of a dialogue as text."""

    turns: tuple[tuple[str, str], ...]  # (role, text), role "user" or "assistant"
    system: str | None = None  # in place of the system prompt of the set


def read_texts(path: str | Path, max_rows: int | None = None) -> list[WrittenDialogue]:
    """Written dialogues of a dialogues folder, of its manifest, or of a file of JSON lines.

    A line is a cut of a dialogues folder, of which the texts are read and nothing else, or an object with ``prompt``,
    ``answer`` and perhaps ``system``. The file may be gzipped.

    Args:
        path: Folder with ``cuts.jsonl``, or file.
        max_rows: Take so many at most, evenly from the whole file; all when None.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A line is no dialogue with an answer; or there is no line.
    """
    path = Path(path)
    file = path / "cuts.jsonl" if path.is_dir() or not path.suffix else path
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, got {max_rows}; None takes all")
    if not file.is_file():
        raise FileNotFoundError(
            f"there is no text set at {file}; name a dialogues folder (with cuts.jsonl) or a file of JSON lines"
        )
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as opened:
        lines = [(number, line) for number, line in enumerate(opened, start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{file} is empty; a text set needs at least one line with a question and its answer")
    if max_rows is not None and len(lines) > max_rows:
        spread = torch.linspace(0, len(lines) - 1, max_rows, dtype=torch.float64).round().long()
        lines = [lines[i] for i in spread.tolist()]
    return [_dialogue(line, f"{file}, line {number}") for number, line in lines]


def _dialogue(line: str, where: str) -> WrittenDialogue:
    wanted = 'give {"prompt": "...", "answer": "..."}, or a cut of a dialogues folder'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); {wanted}") from error
    if isinstance(record, dict) and "supervisions" in record:
        turns = tuple((turn.get("speaker"), turn.get("text")) for turn in record["supervisions"])
        system = (record.get("custom") or {}).get("system")
    elif isinstance(record, dict) and "prompt" in record and "answer" in record:
        turns, system = (("user", record["prompt"]), ("assistant", record["answer"])), record.get("system")
    else:
        found = f"the keys {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
        raise ValueError(f"{where}: {found} make no dialogue; {wanted}")
    for index, (role, text) in enumerate(turns):
        if role not in ("user", "assistant") or not isinstance(text, str):
            raise ValueError(f"{where}: turn {index} is said by {role!r} and its text is {text!r}; {wanted}")
    if not any(role == "assistant" for role, _ in turns):
        raise ValueError(f"{where}: nobody answers, so there is nothing to score; {wanted}")
    return WrittenDialogue(turns, system)


@dataclass(frozen=True)
class TextLine:
    """Dialogues as text, end to end; attention never crosses ``lengths``."""

    text_ids: Tensor  # (N,) int64
    position_ids: Tensor  # (N,) int64, restart at 0 in every row
    lengths: Tensor  # (R,) int64 on CPU
    positions: Tensor  # (M,) int64 into N, from which each answer token is predicted
    targets: Tensor  # (M,) int64, the answer tokens
    answers: Tensor  # (M,) int64, answer of the line that a token belongs to, from 0
    num_answers: int  # A

    def to(self, device: torch.device | str) -> TextLine:
        """Copy on ``device``; the lengths stay where they are."""
        moved = {name: getattr(self, name).to(device) for name in ("text_ids", "position_ids", "positions", "targets")}
        return TextLine(**moved, lengths=self.lengths, answers=self.answers.to(device), num_answers=self.num_answers)


def lay_out_texts(
    dialogues: Sequence[WrittenDialogue], chat: ChatFormat, system: str, capacity: int = 2048
) -> list[TextLine]:
    """Dialogues as packed lines, in the words of mode T2T; each answer is scored up to its ``<|im_end|>``.

    Args:
        dialogues: In the order in which they are packed.
        chat: Token ids of the pieces.
        system: System prompt of dialogues without one of their own.
        capacity: Positions of a line; a longer dialogue is a line of its own.
    """
    rows = [_row(dialogue, chat, system) for dialogue in dialogues]
    packed: list[list[tuple[list[int], list[tuple[int, int]]]]] = []
    room = -1
    for row in rows:
        if len(row[0]) > room:
            packed.append([])
            room = capacity
        packed[-1].append(row)
        room -= len(row[0])
    return [_line(line) for line in packed]


def _row(dialogue: WrittenDialogue, chat: ChatFormat, system: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a dialogue and the spans ``[first, last)`` of its answers."""
    ids = list(chat.system(system if dialogue.system is None else dialogue.system))
    spans = []
    for role, text in dialogue.turns:
        ids += chat.user_open() if role == "user" else chat.assistant_open()
        first = len(ids)
        ids += chat.encode(text)
        if role == "assistant":
            spans.append((first, len(ids) + 1))  # with <|im_end|>
        ids += chat.close()
    return ids, spans


def _line(rows: list[tuple[list[int], list[tuple[int, int]]]]) -> TextLine:
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    starts = (lengths.cumsum(0) - lengths).tolist()
    spans = [(start + first, start + last) for start, (_, own) in zip(starts, rows, strict=True) for first, last in own]
    text_ids = torch.tensor([token for ids, _ in rows for token in ids])
    tokens = torch.cat([torch.arange(first, last) for first, last in spans])
    sizes = torch.tensor([last - first for first, last in spans])
    return TextLine(
        text_ids=text_ids,
        position_ids=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        lengths=lengths,
        positions=tokens - 1,
        targets=text_ids[tokens],
        answers=torch.arange(len(spans)).repeat_interleave(sizes),
        num_answers=len(spans),
    )


def set_digest(lines: Sequence[TextLine]) -> str:
    """Short text that is the same for the same rows in the same order, however they are packed."""
    hashed = blake2b(digest_size=8)
    for name in ("text_ids", "lengths", "targets"):
        joined = torch.cat([getattr(line, name) for line in lines])
        hashed.update(joined.cpu().numpy().tobytes())
    return hashed.hexdigest()


class TextLM(Protocol):
    """The part of a ``Backbone`` that reads text."""

    @property
    def output_weight(self) -> Tensor:
        """Output matrix ``(V, D)``."""
        ...

    def embed(self, text_ids: Tensor) -> Tensor:
        """Embeddings ``(N, D)`` of ids ``(N,)``."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(M, V)`` of hidden states ``(M, D)``."""
        ...

    def __call__(self, embeds: Tensor, position_ids: Tensor, lengths: Tensor) -> Any:
        """Hidden states ``(N, D)`` of a packed line."""
        ...


@dataclass(frozen=True)
class TextScores:
    """How a set is answered, every token of an answer predicted from the true ones before it."""

    accuracy: float  # share of answer tokens, <|im_end|> included, that are the most likely one
    exact: float  # share of answers of which all tokens are: what greedy decoding says word for word
    loss: float  # nats per answer token
    kl: float  # nats per answer token, KL(base || now); 0 without a base
    tokens: int
    answers: int


@dataclass(frozen=True)
class TextBaseline:
    """What a base model said of every answer token: whole distributions, or the most likely tokens and the rest.

    Where only the K most likely tokens are kept, all others count as one: the divergence is then a lower bound, and
    equal where the others' shares of the rest did not change.
    """

    logprobs: Tensor  # (M, K) float32; K = V where ids is None
    ids: Tensor | None  # (M, K) int32, the K most likely tokens
    rest: Tensor | None  # (M,) float32, log-probability of all other tokens together
    scores: TextScores  # of the base
    digest: str  # of the set

    def divergence(self, logprobs: Tensor, first: int) -> Tensor:
        """``KL(base || now)`` in nats ``(m,)`` of tokens ``first ..`` from their log-probabilities now ``(m, V)``.

        The vocabulary may have grown since: the base gives nothing to tokens that it does not know.
        """
        part = slice(first, first + logprobs.shape[0])
        base = self.logprobs[part].to(logprobs.device)
        if self.ids is None or self.rest is None:
            return (base.exp() * (base - logprobs[:, : base.shape[1]])).sum(1)
        ids, rest = self.ids[part].to(logprobs.device, torch.int64), self.rest[part].to(logprobs.device)
        others = logprobs.scatter(1, ids, -torch.inf).logsumexp(1)
        return (base.exp() * (base - logprobs.gather(1, ids))).sum(1) + rest.exp() * (rest - others)

    def save(self, path: Path, **notes: str) -> None:
        """Write a safetensors file, whole or not at all; ``notes`` go into its metadata."""
        from safetensors.torch import save_file

        tensors = {"logprobs": self.logprobs, "ids": self.ids, "rest": self.rest}
        scores = json.dumps(asdict(self.scores))
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        stored = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(stored, str(draft), {**notes, "scores": scores, "digest": self.digest})
        draft.replace(path)

    @staticmethod
    def load(path: Path) -> tuple[TextBaseline, dict[str, str]]:
        """A stored baseline and the notes in its metadata.

        Raises:
            ValueError: The file is none.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                notes: dict[str, str] = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            scores = TextScores(**json.loads(notes.pop("scores")))
            digest, kept = notes.pop("digest"), tensors["logprobs"]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no baseline of a text set ({error}); remove it") from error
        return TextBaseline(kept, tensors.get("ids"), tensors.get("rest"), scores, digest), notes


@torch.no_grad()
def score_texts(lm: TextLM, lines: Sequence[TextLine], base: TextBaseline | None = None) -> TextScores:
    """Answer a set by teacher forcing; the model runs in eval mode and is left as it was.

    Args:
        lm: A ``Backbone``.
        lines: The set.
        base: What to measure the divergence from.

    Raises:
        ValueError: The base was taken of another set, or knows more tokens than the model.
    """
    if base is not None and base.digest != set_digest(lines):
        raise ValueError("the baseline was taken of another text set, text tokenizer or system prompt; take it again")
    if base is not None and base.ids is None and base.logprobs.shape[1] > lm.output_weight.shape[0]:
        raise ValueError(
            f"the baseline knows {base.logprobs.shape[1]} tokens and this model {lm.output_weight.shape[0]}: a "
            "vocabulary may grow, not shrink; take the baseline of the model that this one grew from"
        )
    device = lm.output_weight.device
    sums = torch.zeros(4, dtype=torch.float64, device=device)  # correct tokens, exact answers, loss, divergence
    done = 0
    with _evaluating(lm):
        for line in lines:
            line = line.to(device)
            wrong = torch.zeros(line.num_answers, dtype=torch.int64, device=device)
            for first, logprobs in _logprobs(lm, line):
                part = slice(first, first + logprobs.shape[0])
                targets = line.targets[part]
                missed = logprobs.argmax(1) != targets
                wrong.index_add_(0, line.answers[part], missed.long())
                sums[0] += (~missed).sum()
                sums[2] -= logprobs.gather(1, targets[:, None]).double().sum()
                if base is not None:
                    sums[3] += base.divergence(logprobs, done + first).double().sum()
            sums[1] += (wrong == 0).sum()
            done += len(line.targets)
    answers = sum(line.num_answers for line in lines)
    correct, exact, loss, divergence = sums.tolist()
    # rounding may leave a divergence of equal distributions a hair below zero
    return TextScores(correct / done, exact / answers, loss / done, max(0.0, divergence / done), done, answers)


@torch.no_grad()
def take_baseline(lm: TextLM, lines: Sequence[TextLine], top_k: int = 128) -> TextBaseline:
    """What a model says of a set now; whole distributions where they take 64 MiB at most.

    Args:
        lm: A ``Backbone``; it runs in eval mode and is left as it was.
        lines: The set.
        top_k: Tokens kept of a larger set or vocabulary, the most likely ones; all others count as one.
    """
    vocab, tokens = lm.output_weight.shape[0], sum(len(line.targets) for line in lines)
    whole = tokens * vocab <= WHOLE_ELEMENTS or top_k >= vocab
    kept, ids, rest = [], [], []
    with _evaluating(lm):
        for line in lines:
            for _, logprobs in _logprobs(lm, line.to(lm.output_weight.device)):
                if whole:
                    kept.append(logprobs.cpu())
                    continue
                top = logprobs.topk(top_k, dim=1)
                kept.append(top.values.cpu())
                ids.append(top.indices.to("cpu", torch.int32))
                rest.append(logprobs.scatter(1, top.indices, -torch.inf).logsumexp(1).cpu())
    return TextBaseline(
        logprobs=torch.cat(kept),
        ids=None if whole else torch.cat(ids),
        rest=None if whole else torch.cat(rest),
        scores=score_texts(lm, lines),
        digest=set_digest(lines),
    )


def _logprobs(lm: TextLM, line: TextLine) -> Iterator[tuple[int, Tensor]]:
    """Log-probabilities ``(m, V)`` float32 of the vocabulary at answer tokens ``first .. first + m``, part by part."""
    hidden = lm(lm.embed(line.text_ids), line.position_ids, line.lengths).index_select(0, line.positions)
    rows = max(1, CHUNK_ELEMENTS // lm.output_weight.shape[0])
    for first in range(0, len(hidden), rows):
        yield first, lm.logits(hidden[first : first + rows]).float().log_softmax(1)


@contextmanager
def _evaluating(lm: TextLM) -> Iterator[None]:
    """Eval mode inside; afterwards every module has the mode that it had, frozen ones their own."""
    modules = list(lm.modules()) if isinstance(lm, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
