"""The contract of backbones, to run on a part of your own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fac_lightning.backbones import Backbone

__all__ = ["check_backbone"]


@torch.no_grad()
def check_backbone(backbone: Backbone, atol: float = 1e-5) -> None:
    """Hold a backbone to its contract: packing, stepping and left padding change nothing; the future is not seen.

    Of a backbone that ``takes_parents``, sharing too: rows that continue a row give what whole rows give.

    Args:
        backbone: Small enough for a CPU; it is copied and set to ``eval``.
        atol: Largest difference between hidden states that must be equal.

    Raises:
        AssertionError: Says which promise is broken.
    """
    part, generator = copy.deepcopy(backbone).eval(), torch.Generator().manual_seed(0)
    for name in ("dim", "vocab_size"):
        value = getattr(part, name, None)
        positive = isinstance(value, int) and value > 0
        assert positive, f"{name} must be a positive int, got {value!r}"
    sizes = [4, 1, 7, 5]
    text_ids = torch.randint(0, part.vocab_size, (sum(sizes),), generator=generator)
    embeds, lengths = part.embed(text_ids), torch.tensor(sizes)
    assert embeds.shape == (len(text_ids), part.dim), f"embed gives {tuple(embeds.shape)}, dim is {part.dim}"
    assert torch.equal(part.embed(text_ids[None]), embeds[None]), "embed must take ids of any shape (...)"
    assert part.output_weight.shape == (part.vocab_size, part.dim), (
        f"output_weight is {tuple(part.output_weight.shape)}, not (vocab_size, dim) = {part.vocab_size, part.dim}"
    )
    positions = torch.cat([torch.arange(n) for n in sizes])
    packed = part(embeds, positions, lengths)
    assert packed.shape == embeds.shape, f"hidden states are {tuple(packed.shape)}, not {tuple(embeds.shape)}"
    assert part.logits(packed).shape == (len(text_ids), part.vocab_size), "logits must have vocab_size columns"
    plain, cap = packed @ part.output_weight.to(packed.dtype).T, part.logit_softcap
    promise = "logits must be the product with output_weight, by which training scores, softly capped where it says so"
    _same(part.logits(packed), plain if cap is None else cap * (plain / cap).tanh(), atol, promise)
    rows = embeds.split(sizes)
    alone = [part(row, torch.arange(len(row)), torch.tensor([len(row)])) for row in rows]
    _same(packed, torch.cat(alone), atol, "rows packed in one line must give what each gives alone")
    if part.takes_parents:
        _check_parents(part, rows, atol)

    longest = rows[2]
    changed = longest.clone()
    changed[-1] += 1
    seen = part(changed, torch.arange(len(changed)), torch.tensor([len(changed)]))
    _same(seen[:-1], alone[2][:-1], atol, "a position must not see later ones")

    cache, keep = part.new_cache(), torch.ones(1, len(longest), dtype=torch.bool)
    pieces, start = [], 0
    for size in (3, 1, len(longest) - 4):
        end = start + size
        where = torch.arange(start, end)[None]
        pieces.append(part.step(longest[None, start:end], keep[:, :end], where, cache)[0])
        start = end
    _same(torch.cat(pieces), alone[2], atol, "stepping with a cache must give what one pass gives")
    _check_left_padding(part, rows[3], longest, alone[3], alone[2], atol)
    _check_caches(part, longest, rows[3], (alone[2], alone[3]), atol)
    if type(part).new_slots is not Backbone.new_slots:
        _check_slots(part, rows, alone, atol)


def _check_parents(part: Backbone, rows: tuple[Tensor, ...], atol: float) -> None:
    """The last three rows, of which two continue the first."""
    ahead, *others = rows[1:]
    positions = [torch.arange(len(ahead)), *(torch.arange(len(row)) + len(ahead) for row in others)]
    lengths = torch.tensor([len(row) for row in rows[1:]])
    shared = part(torch.cat(rows[1:]), torch.cat(positions), lengths, torch.tensor([-1, 0, 0]))
    whole = [torch.cat([ahead, row]) for row in others]
    apart = [part(row, torch.arange(len(row)), torch.tensor([len(row)]))[len(ahead) :] for row in whole]
    _same(shared[len(ahead) :], torch.cat(apart), atol, "rows that continue a row must give what whole rows give")


def _check_left_padding(part: Backbone, short: Tensor, long: Tensor, want: Tensor, other: Tensor, atol: float) -> None:
    """A short and a long row generate together; two calls, the second of one position."""
    pad = len(long) - len(short)
    embeds = torch.stack([torch.cat([long[-pad:], short]), long])  # anything may stand where the padding is
    steps = torch.arange(len(long))
    mask = torch.stack([steps >= pad, steps >= 0])
    position_ids = torch.stack([(steps - pad).clamp_min(0), steps])
    cache = part.new_cache()
    first = part.step(embeds[:, :-1], mask[:, :-1], position_ids[:, :-1], cache)
    last = part.step(embeds[:, -1:], mask, position_ids[:, -1:], cache)
    both = torch.cat([first, last], 1)
    _same(both[0, pad:], want, atol, "left padding in step must change nothing")
    _same(both[1], other, atol, "a row must not change because another one is padded")


def _check_caches(part: Backbone, long: Tensor, short: Tensor, want: tuple[Tensor, Tensor], atol: float) -> None:
    """Two generations take turns, one position each."""
    rows, caches = (long[: len(short)], short), (part.new_cache(), part.new_cache())
    seen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for step in range(len(short)):
        mask, where = torch.ones(1, step + 1, dtype=torch.bool), torch.tensor([[step]])
        for row, cache, hidden in zip(rows, caches, seen, strict=True):
            hidden.append(part.step(row[None, step : step + 1], mask, where, cache)[0])
    for hidden, alone in zip(seen, want, strict=True):
        _same(torch.cat(hidden), alone[: len(short)], atol, "a generation must not disturb another one's cache")


def _check_slots(part: Backbone, rows: tuple[Tensor, ...], alone: list[Tensor], atol: float) -> None:
    """Rows of unequal length step together; one leaves, another takes its slot, and a row taken out is put back."""
    slots, at = part.new_slots(2, 2), dict[int, int]()
    promise = "a row must give in slots what it gives alone, whoever else comes or goes"

    def read(number: int, count: int, row: int) -> None:
        at[number] = at.get(number, 0) + count
        hidden = part.step_slots(rows[number][None, at[number] - count : at[number]], slots, row)
        _same(hidden[0], alone[number][at[number] - count : at[number]], atol, promise)

    def step(*numbers: int) -> None:
        hidden = part.step_slots(torch.stack([rows[n][at[n]] for n in numbers])[:, None], slots)
        _same(hidden[:, 0], torch.stack([alone[n][at[n]] for n in numbers]), atol, promise)
        at.update({n: at[n] + 1 for n in numbers})

    read(2, 3, slots.join())
    read(0, 1, slots.join())
    step(2, 0)
    step(2, 0)
    kept = slots.copied(1)
    slots.leave(1)
    read(3, 2, slots.join())
    read(3, 2, 1)
    slots.leave(0)  # row 1 takes its place
    slots.join(kept)
    step(3, 0)


def _same(left: Tensor, right: Tensor, atol: float, promise: str) -> None:
    gap = (left - right).abs().max().item()
    assert gap <= atol, f"{promise}: differs by {gap:.2e}"
