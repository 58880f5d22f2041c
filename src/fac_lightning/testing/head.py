"""The contract of speech heads, to run on a part of your own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from fac_lightning.heads import SpeechHead
from fac_lightning.types import IGNORE, HeadOutput, bos_code, eos_code, pad_code

__all__ = ["check_head"]


def check_head(head: SpeechHead, atol: float = 1e-5) -> None:
    """Hold a head to its contract: masks, packing and stepping agree with one teacher-forced pass.

    Of a head that reads the ``whole_sequence``, reading too: behind positions that were read, padding among them, a
    step gives what one pass gives.

    Args:
        head: Small enough for a CPU; it is copied and set to ``eval``.
        atol: Largest difference between log-probabilities that must be equal.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part, generator = copy.deepcopy(head).eval(), torch.Generator().manual_seed(0)
    k, q, size = part.group_size, part.num_codebooks, part.codebook_size
    lengths = torch.tensor([3, 1, 3])
    labels = torch.randint(0, size, (7, k, q), generator=generator)
    end = labels[6].view(-1)
    end[k * q // 2], end[k * q // 2 + 1 :] = eos_code(size), IGNORE
    hidden = torch.randn(7, part.dim, generator=generator)
    text = torch.randn(7, part.dim, generator=generator) if part.needs_text else None

    out = part(hidden, labels, lengths, text)
    _check_output(out, labels)
    _check_packing(part, hidden, labels, lengths, text, out, atol)
    _check_masks(part, hidden, labels, lengths, text, out, atol)
    _check_causality(part, hidden, labels, lengths, text, out, atol)
    rows = torch.tensor([[0, 1, 2], [4, 5, 6]])
    _check_steps(part, hidden, labels, text, rows, out, atol)
    if part.whole_sequence:
        _check_reading(part, hidden, labels, text, out, atol)

    empty = part(hidden[:0], labels[:0], lengths[:0], None if text is None else text[:0])
    assert empty.logprobs.shape == (0, k, q), "no groups must give no log-probabilities"
    out.logprobs.sum().backward()
    missing = [name for name, p in part.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient reaches {', '.join(missing)}"


def _check_output(out: HeadOutput, labels: Tensor) -> None:
    for name in ("logprobs", "correct", "mask"):
        shape = tuple(getattr(out, name).shape)
        assert shape == tuple(labels.shape), f"{name} is {shape}, the labels are {tuple(labels.shape)}"
    assert torch.equal(out.mask, labels != IGNORE), "mask must be where a label is"
    assert out.logprobs.dtype == torch.float32, f"log-probabilities must be float32, not {out.logprobs.dtype}"
    assert bool((out.logprobs <= 0).all()), "log-probabilities must not be positive"
    assert not out.logprobs[~out.mask].any(), "log-probabilities must be 0 where there is no label"


def _check_packing(
    part: SpeechHead, hidden: Tensor, labels: Tensor, lengths: Tensor, text: Tensor | None, out: HeadOutput, atol: float
) -> None:
    sizes, start = lengths.tolist(), 0
    for size in sizes:
        span = slice(start, start + size)
        alone = part(hidden[span], labels[span], torch.tensor([size]), None if text is None else text[span])
        _same(out.logprobs[span], alone.logprobs, atol, "replies packed together must give what each gives alone")
        start += size


def _check_masks(
    part: SpeechHead, hidden: Tensor, labels: Tensor, lengths: Tensor, text: Tensor | None, out: HeadOutput, atol: float
) -> None:
    fewer = labels.clone()
    fewer[2, -1] = IGNORE  # the end of the first reply
    kept = fewer != IGNORE
    masked = part(hidden, fewer, lengths, text)
    _same(out.logprobs[kept], masked.logprobs[kept], atol, "masking a label must change no other label")
    none = part(hidden, torch.full_like(labels, IGNORE), lengths, text)
    assert not none.logprobs.any(), "with every label masked all log-probabilities must be 0"


def _check_causality(
    part: SpeechHead, hidden: Tensor, labels: Tensor, lengths: Tensor, text: Tensor | None, out: HeadOutput, atol: float
) -> None:
    later = hidden.clone()
    later[2] += 1
    changed = part(later, labels, lengths, text).logprobs
    _same(out.logprobs[:2], changed[:2], atol, "a group must not see hidden states of later groups")
    _same(out.logprobs[3:], changed[3:], atol, "a reply must not see another reply")
    assert not torch.equal(out.logprobs[2], changed[2]), "a group must see its hidden state"


@torch.no_grad()
def _check_steps(
    part: SpeechHead, hidden: Tensor, labels: Tensor, text: Tensor | None, rows: Tensor, out: HeadOutput, atol: float
) -> None:
    size = part.codebook_size
    seen: list[Tensor] = []
    state = part.new_state(len(rows))
    for group in range(rows.shape[1]):
        index = rows[:, group]
        said = part.step(hidden[index], state, _dictate(part, labels[index], seen), _rows(text, index))
        filled = labels[index].where(labels[index] != IGNORE, pad_code(size))
        assert said.shape == filled.shape, f"step gives {tuple(said.shape)}, not {tuple(filled.shape)}"
        assert torch.equal(said, filled), "step must return what was sampled, and pad after eos"
    stepped = torch.stack(seen, 1).unflatten(1, (rows.shape[1], *labels.shape[1:]))  # (B, groups, k, Q)
    forced, mask = out.logprobs[rows], out.mask[rows]
    _same(stepped[mask], forced[mask], atol, "stepping must give the log-probabilities of one teacher-forced pass")


@torch.no_grad()
def _check_reading(
    part: SpeechHead, hidden: Tensor, labels: Tensor, text: Tensor | None, out: HeadOutput, atol: float
) -> None:
    """The first row reads two positions, the second one position behind padding; then both step."""
    read, mask, last = torch.tensor([[0, 1], [3, 5]]), torch.tensor([[True, True], [False, True]]), torch.tensor([2, 6])
    state, seen = part.new_state(2), list[Tensor]()
    groups = labels[read].masked_fill(~mask[..., None, None], pad_code(part.codebook_size))
    part.read(hidden[read], groups, state, mask, _rows(text, read))
    part.step(hidden[last], state, _dictate(part, labels[last], seen), _rows(text, last))
    short = part(hidden[5:], labels[5:], torch.tensor([2]), _rows(text, slice(5, None)))
    stepped, kept = torch.stack(seen, 1).view_as(labels[last]), out.mask[last]
    forced = torch.stack([out.logprobs[2], short.logprobs[1]])
    _same(stepped[kept], forced[kept], atol, "a step behind positions that were read must give what one pass gives")


def _dictate(part: SpeechHead, labels: Tensor, seen: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """A ``sample`` that picks the labels ``(B, k, Q)`` one by one, and keeps their log-probabilities ``(B,)``."""
    wanted, size = iter(labels.flatten(1).unbind(1)), part.codebook_size

    def sample(logits: Tensor) -> Tensor:
        assert logits.shape == (len(labels), size + 3), f"sample got logits {tuple(logits.shape)}, not (B, {size + 3})"
        never = logits[:, [bos_code(size), pad_code(size)]]
        assert part.says_special or bool((never == -torch.inf).all()), "logits of bos and pad must be -inf"
        label = next(wanted)
        codes = label.where(label != IGNORE, 0)
        seen.append(logits.log_softmax(1).gather(1, codes[:, None]).squeeze(1))
        return codes

    return sample


def _rows(text: Tensor | None, index: Tensor | slice) -> Tensor | None:
    return None if text is None else text[index]


def _same(left: Tensor, right: Tensor, atol: float, promise: str) -> None:
    gap = (left - right).abs().max().item() if left.numel() else 0.0
    assert gap <= atol, f"{promise}: differs by {gap:.2e}"
