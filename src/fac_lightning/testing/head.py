"""The contract of speech heads, to run on a part of your own.

Legend: H groups in three replies of 3, 1 and 3, k frames per group, Q codebooks, B rows of a generation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fac_lightning.heads import SpeechHead
from fac_lightning.types import IGNORE, HeadOutput, bos_code, eos_code, pad_code

__all__ = ["check_head"]


def check_head(head: SpeechHead, atol: float = 1e-5) -> None:
    """Hold a head to its contract: masks, packing and stepping agree with one teacher-forced pass.

    Of a head that reads the ``whole_sequence``, reading too: behind positions that were read, padding among them, a
    step gives what one pass gives; in slots also behind a copy of what a row has read.

    Args:
        head: Small enough for a CPU; it is copied and set to ``eval``.
        atol: Largest difference between log-probabilities that must be equal.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part = copy.deepcopy(head).eval()
    _check_sizes(part)
    case = _Case.of(part, atol)
    out = case.run()
    _check_output(case, out)
    _check_packing(case, out)
    _check_masks(case, out)
    _check_causality(case, out)
    _check_steps(case, out)
    _check_states(case, out)
    _check_slots(case, out)
    if part.whole_sequence:
        _check_reading(case, out)
        _check_reading_in_slots(case, out)
    _check_gradients(case)


@dataclass(frozen=True)
class _Case:
    """A head and replies for it to say; the last one ends inside its last group."""

    part: SpeechHead
    atol: float
    hidden: Tensor  # (H, dim)
    labels: Tensor  # (H, k, Q)
    lengths: Tensor  # (U,)
    text: Tensor | None  # (H, dim)

    @classmethod
    def of(cls, part: SpeechHead, atol: float) -> _Case:
        """Random replies, the same for heads of the same sizes."""
        generator, size = torch.Generator().manual_seed(0), part.codebook_size
        labels = torch.randint(0, size, (7, part.group_size, part.num_codebooks), generator=generator)
        ending = labels[6, part.group_size // 2 :]
        ending[:] = IGNORE
        ending[0, 0] = eos_code(size)
        hidden = torch.randn(7, part.dim, generator=generator)
        text = torch.randn(7, part.dim, generator=generator) if part.needs_text else None
        return cls(part, atol, hidden, labels, torch.tensor([3, 1, 3]), text)

    def run(self) -> HeadOutput:
        """One teacher-forced pass."""
        out: HeadOutput = self.part(self.hidden, self.labels, self.lengths, self.text)
        return out

    def take(self, index: Tensor | slice, lengths: list[int]) -> _Case:
        """Some of the groups, as replies of ``lengths``."""
        text = None if self.text is None else self.text[index]
        sizes = torch.tensor(lengths, dtype=torch.long)
        return replace(self, hidden=self.hidden[index], labels=self.labels[index], lengths=sizes, text=text)

    def text_of(self, index: Tensor) -> Tensor | None:
        """Text embeddings of groups."""
        return None if self.text is None else self.text[index]

    def same(self, left: Tensor, right: Tensor, promise: str) -> None:
        """Raise where log-probabilities differ."""
        gap = (left - right).abs().max().item() if left.numel() else 0.0
        assert gap <= self.atol, f"{promise}: differs by {gap:.2e}"


def _check_sizes(part: SpeechHead) -> None:
    for name in ("dim", "group_size", "num_codebooks", "codebook_size"):
        value = getattr(part, name, None)
        positive = isinstance(value, int) and value > 0
        assert positive, f"{name} must be a positive int, got {value!r}"
    places = part.group_size * part.num_codebooks
    assert sorted(part.order) == list(range(places)), f"order must name each of the {places} places once"
    asked = [part.order.index(frame * part.num_codebooks) for frame in range(part.group_size)]
    assert asked == sorted(asked), "order must ask for the first codebook of every frame in the order of the frames"
    for frame, first in enumerate(asked):
        others = range(frame * part.num_codebooks + 1, (frame + 1) * part.num_codebooks)
        assert all(part.order.index(place) > first for place in others), (
            f"order must ask for the first codebook of frame {frame} before its others: it says whether speech ends"
        )


def _check_output(case: _Case, out: HeadOutput) -> None:
    labels = case.labels
    for name in ("logprobs", "correct", "mask"):
        shape = tuple(getattr(out, name).shape)
        assert shape == tuple(labels.shape), f"{name} is {shape}, the labels are {tuple(labels.shape)}"
    assert torch.equal(out.mask, labels != IGNORE), "mask must be where a label is"
    assert out.logprobs.dtype == torch.float32, f"log-probabilities must be float32, not {out.logprobs.dtype}"
    assert bool((out.logprobs <= 0).all()), "log-probabilities must not be positive"
    assert not out.logprobs[~out.mask].any(), "log-probabilities must be 0 where there is no label"
    assert not out.correct[~out.mask].any(), "correct must be False where there is no label"
    untouched = _Case.of(case.part, case.atol)
    for name in ("hidden", "labels", "lengths"):
        assert torch.equal(getattr(case, name), getattr(untouched, name)), f"{name} must be left as they were given"
    if case.text is not None:
        other = replace(case, text=case.text + 1).run().logprobs
        assert not torch.equal(out.logprobs, other), "a head with needs_text must see the text embeddings"


def _check_packing(case: _Case, out: HeadOutput) -> None:
    sizes, start = case.lengths.tolist(), 0
    for size in sizes:
        span = slice(start, start + size)
        alone = case.take(span, [size]).run()
        case.same(out.logprobs[span], alone.logprobs, "replies packed together must give what each gives alone")
        start += size
    spaced = replace(case, lengths=torch.tensor([0, 3, 0, 1, 3, 0])).run()
    case.same(out.logprobs, spaced.logprobs, "a reply without groups must change nothing")
    empty, shape = case.take(slice(0, 0), []).run().logprobs.shape, case.labels[:0].shape
    assert empty == shape, f"no groups must give no log-probabilities {tuple(shape)}, not {tuple(empty)}"


def _check_masks(case: _Case, out: HeadOutput) -> None:
    fewer = case.labels.clone()
    fewer[2].view(-1)[case.part.order[-1]] = IGNORE  # the last code of the first reply
    kept = fewer != IGNORE
    masked = replace(case, labels=fewer).run()
    case.same(out.logprobs[kept], masked.logprobs[kept], "masking a label must change no other label")
    none = replace(case, labels=torch.full_like(case.labels, IGNORE)).run()
    assert not none.logprobs.any(), "with every label masked all log-probabilities must be 0"
    filled, ending = case.labels.clone(), case.part.group_size // 2
    filled[6, ending] = eos_code(case.part.codebook_size)
    before = replace(case, labels=filled).run().logprobs[6, :ending]
    promise = "a frame of eos and its first eos alone must be the same to the codes before"
    case.same(out.logprobs[6, :ending], before, promise)


def _check_causality(case: _Case, out: HeadOutput) -> None:
    later = case.hidden.clone()
    later[2] += 3
    changed = replace(case, hidden=later).run().logprobs
    case.same(out.logprobs[:2], changed[:2], "a group must not see hidden states of later groups")
    case.same(out.logprobs[3:], changed[3:], "a reply must not see another reply")
    assert not torch.equal(out.logprobs[2], changed[2]), "a group must see its hidden state"
    other, last = case.labels.clone(), case.part.order[-1]
    other[1].view(-1)[last] = (other[1].view(-1)[last] + 1) % case.part.codebook_size
    changed = replace(case, labels=other).run().logprobs
    case.same(out.logprobs[0], changed[0], "a group must not see codes of later groups")
    kept = torch.arange(other[1].numel()) != last
    left, right = (logprobs[1].flatten()[kept] for logprobs in (out.logprobs, changed))
    case.same(left, right, "a code must not see codes that are said after it")


@dataclass(frozen=True)
class _Dictation:
    """A ``sample`` that picks the labels ``(B, k, Q)`` place by place, and keeps what was likely."""

    part: SpeechHead
    labels: Tensor
    logprobs: list[Tensor] = field(default_factory=list)  # (B,) of each code asked for
    correct: list[Tensor] = field(default_factory=list)  # (B,) bool

    def __call__(self, logits: Tensor) -> Tensor:
        """The next label of every row; 0 where there is none."""
        size, places = self.part.codebook_size, len(self.part.order)
        assert logits.shape == (len(self.labels), size + 3), (
            f"sample got logits {tuple(logits.shape)}, not {(len(self.labels), size + 3)}: (B, codebook_size + 3)"
        )
        never = logits[:, [bos_code(size), pad_code(size)]]
        assert self.part.says_special or bool((never == -torch.inf).all()), "logits of bos and pad must be -inf"
        assert len(self.logprobs) < places, f"step must ask for {places} codes, and asks for more"
        label = self.labels.flatten(1)[:, self.part.order[len(self.logprobs)]]
        codes = label.where(label != IGNORE, 0)
        self.logprobs.append(logits.log_softmax(1).gather(1, codes[:, None]).squeeze(1))
        self.correct.append(logits.argmax(1) == codes)
        return codes

    def in_place(self, asked: list[Tensor]) -> Tensor:
        """What was kept, as it lies in the group ``(B, k, Q)``."""
        back = torch.tensor(self.part.order).argsort()
        return torch.stack(asked, 1)[:, back].view(self.labels.shape)


def _step(case: _Case, index: Tensor, state: object) -> _Dictation:
    """Let rows say the groups at ``index`` ``(B,)``."""
    heard = _Dictation(case.part, case.labels[index])
    said = case.part.step(case.hidden[index], state, heard, case.text_of(index))
    places = len(case.part.order)
    assert len(heard.logprobs) == places, f"step must ask for {places} codes, not {len(heard.logprobs)}"
    filled = heard.labels.where(heard.labels != IGNORE, pad_code(case.part.codebook_size))
    assert said.shape == filled.shape, f"step gives {tuple(said.shape)}, not {tuple(filled.shape)}"
    assert torch.equal(said, filled), "step must return what was sampled, and pad after eos"
    return heard


@torch.no_grad()
def _check_steps(case: _Case, out: HeadOutput) -> None:
    rows = torch.tensor([[0, 1, 2], [4, 5, 6]])
    state = case.part.new_state(len(rows))
    for index in rows.unbind(1):
        heard, mask = _step(case, index, state), out.mask[index]
        stepped, forced = heard.in_place(heard.logprobs), out.logprobs[index]
        case.same(stepped[mask], forced[mask], "stepping must give the log-probabilities of one teacher-forced pass")
        likely = heard.in_place(heard.correct)
        assert torch.equal(likely[mask], out.correct[index][mask]), (
            "correct must say whether the label is the most likely code"
        )


@torch.no_grad()
def _check_states(case: _Case, out: HeadOutput) -> None:
    states = [case.part.new_state(1), case.part.new_state(1)]
    for groups in ([0, 4], [1, 5], [2, 6]):
        for group, state in zip(groups, states, strict=True):
            heard, mask = _step(case, torch.tensor([group]), state), out.mask[group]
            stepped = heard.in_place(heard.logprobs)[0]
            case.same(stepped[mask], out.logprobs[group][mask], "what is said with one state must not disturb another")


@torch.no_grad()
def _check_slots(case: _Case, out: HeadOutput) -> None:
    """Three replies begin and end while others go on, where the head has slots for them."""
    slots = case.part.new_slots(3)
    if slots is None:
        return

    def said(*groups: int) -> None:
        index = torch.tensor(groups)
        heard, mask = _step(case, index, slots), out.mask[index]
        promise = "a reply must give in slots what it gives alone, whoever else begins or ends"
        case.same(heard.in_place(heard.logprobs)[mask], out.logprobs[index][mask], promise)

    assert slots.join() == 0, "the first reply must have row 0"
    said(0)
    assert slots.join() == 1, "a reply must begin behind the others"
    said(1, 4)
    slots.join()
    said(2, 5, 3)
    slots.leave(0)  # the last one takes its place, and leaves
    slots.leave(0)
    said(6)


@torch.no_grad()
def _check_reading(case: _Case, out: HeadOutput) -> None:
    """The first row reads two positions, the second one position behind padding; then both step."""
    read, mask, last = torch.tensor([[0, 1], [3, 5]]), torch.tensor([[True, True], [False, True]]), torch.tensor([2, 6])
    state, part = case.part.new_state(2), case.part
    groups = case.labels[read].masked_fill(~mask[..., None, None], pad_code(part.codebook_size))
    part.read(case.hidden[read], groups, state, mask, case.text_of(read))
    heard = _step(case, last, state)
    stepped, kept = heard.in_place(heard.logprobs), out.mask[last]
    short = case.take(slice(5, None), [2]).run()
    forced = torch.stack([out.logprobs[2], short.logprobs[1]])
    case.same(stepped[kept], forced[kept], "a step behind positions that were read must give what one pass gives")


@torch.no_grad()
def _check_reading_in_slots(case: _Case, out: HeadOutput) -> None:
    """One row speaks while others read, leave and go on twice behind what one of them had read."""
    slots, part = case.part.new_slots(3), case.part
    if slots is None:
        return

    def said(promise: str, *groups: int) -> None:
        index = torch.tensor(groups)
        heard, mask = _step(case, index, slots), out.mask[index]
        case.same(heard.in_place(heard.logprobs)[mask], out.logprobs[index][mask], promise)

    def read(group: int, row: int) -> None:
        index = torch.tensor([[group]])
        part.read(case.hidden[index], case.labels[index], slots, None, case.text_of(index), row=row)

    slots.join()
    read(4, slots.join())
    seen = slots.copied(1)
    slots.leave(1)
    said("a row that speaks must not be disturbed by one that reads", 0)
    for _ in range(2):
        read(5, slots.join(seen))
    said("a row that joined behind a copy must go on where the copied one was", 1, 6, 6)


def _check_gradients(case: _Case) -> None:
    part = case.part
    for groups, where in ((0, " where no group is said"), (7, "")):
        part.zero_grad(set_to_none=True)
        some = case.take(slice(0, groups), [3, 1, 3] if groups else [])
        asking = replace(some, hidden=some.hidden.clone().requires_grad_())
        total = asking.run().logprobs.sum()
        if total.requires_grad:
            total.backward()
        missing = [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient reaches {', '.join(missing)}{where}"
    grad = asking.hidden.grad
    reached = grad is not None and bool(grad.any(1).all())
    assert reached, "a gradient must reach the hidden state of every group"
