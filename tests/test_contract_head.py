"""The contract kit of heads finds what is broken: one deliberately broken head for every clause."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fac_lightning.heads import FunAudioHead, RefinedHead
from fac_lightning.testing import check_head
from fac_lightning.types import bos_code, eos_code, pad_code

CODES = 12
TRANSFORMER = {
    "model_type": "qwen3",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


class Right(RefinedHead):
    """A head that keeps the contract: groups of 2 frames, 2 codebooks."""

    def __init__(self) -> None:
        super().__init__(8, 2, CODES, 2, width=16, num_layers=1, num_heads=2)


def by_reply(values: Tensor, lengths: Tensor) -> Tensor:
    """Means ``(H,)`` over each reply of values ``(H,)``."""
    means = [part.float().mean() for part in values.split(lengths.tolist()) if len(part)]
    return torch.stack(means).repeat_interleave(lengths[lengths > 0])


def first_groups(lengths: Tensor) -> Tensor:
    """First group of every reply that has another one behind it."""
    return (lengths.cumsum(0) - lengths)[lengths > 1]


def test_the_right_head_is_right() -> None:
    check_head(Right())


# -- sizes and order


@pytest.mark.parametrize("name", ["dim", "group_size", "num_codebooks", "codebook_size"])
@pytest.mark.parametrize("value", [0, 2.0, None])
def test_sizes(name: str, value: object) -> None:
    head = Right()
    setattr(head, name, value)
    with pytest.raises(AssertionError, match=f"{name} must be a positive int, got {value!r}"):
        check_head(head)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1, 2, 2), "name each of the 4 places once"),
        ((0, 1, 2), "name each of the 4 places once"),
        ((2, 3, 0, 1), "first codebook of every frame in the order of the frames"),
        ((1, 0, 2, 3), "first codebook of frame 0 before its others"),
    ],
)
def test_order(order: tuple[int, ...], message: str) -> None:
    class Unordered(Right):
        @property
        def order(self):
            return order

    with pytest.raises(AssertionError, match=message):
        check_head(Unordered())


# -- what one pass gives


class Output(Right):
    """Changes what is right."""

    def change(self, out, hidden, labels, lengths):
        raise NotImplementedError

    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        out = super().forward(hidden, labels, reply_lengths)
        return self.change(out, hidden, labels, reply_lengths) if len(hidden) else out


class LosesFrames(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, logprobs=out.logprobs[:, :1])


class LosesCorrect(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, correct=out.correct.flatten(1))


class LosesMask(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, mask=out.mask[1:])


class MasksNothing(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, mask=torch.ones_like(out.mask))


class Wide(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, logprobs=out.logprobs.double())


class Unnormalised(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, logprobs=out.logprobs + 5 * out.mask)


class ScoresWithoutLabel(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, logprobs=out.logprobs - 1)


class CorrectWithoutLabel(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, correct=out.correct | ~out.mask)


class WritesHidden(Output):
    def change(self, out, hidden, labels, lengths):
        hidden += 1
        return out


class WritesLabels(Output):
    def change(self, out, hidden, labels, lengths):
        labels[0, 0, 0] = (labels[0, 0, 0] + 1) % CODES
        return out


class WritesLengths(Output):
    def change(self, out, hidden, labels, lengths):
        lengths += 1
        return out


class DeafToText(Right):
    needs_text = True


# -- packing


class SeesOtherReplies(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        return super().forward(hidden + hidden.mean(0), labels, reply_lengths)


class StumblesOverEmptyReplies(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, logprobs=out.logprobs * (1 + (lengths == 0).any()))


class SpeaksOfNothing(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        out = super().forward(hidden, labels, reply_lengths)
        return out if len(hidden) else replace(out, logprobs=out.logprobs.new_zeros(1, 2, 2))


# -- masks


class AveragesOverLabels(Output):
    def change(self, out, hidden, labels, lengths):
        shares = by_reply(out.mask.sum((1, 2)), lengths)
        return replace(out, logprobs=out.logprobs / shares.clamp_min(1)[:, None, None])


class ScoresWhatIsMasked(Output):
    def change(self, out, hidden, labels, lengths):
        return out if out.mask.any() else replace(out, logprobs=out.logprobs - 1)


class CountsEos(Output):
    def change(self, out, hidden, labels, lengths):
        ends = by_reply((labels == eos_code(CODES)).sum((1, 2)), lengths)
        return replace(out, logprobs=out.logprobs * (1 + ends)[:, None, None])


# -- causality


class SeesTheWholeReply(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        if len(hidden):
            hidden = hidden + by_reply(hidden.mean(1), reply_lengths)[:, None]
        return super().forward(hidden, labels, reply_lengths)


class HearsLoudReplies(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        loud = torch.zeros_like(hidden)
        loud[3:] = hidden[:3].amax() > 4 if len(hidden) > 3 else 0
        return super().forward(hidden + loud, labels, reply_lengths)


class Blind(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        return super().forward(hidden * 0, labels, reply_lengths)


class SeesTheNextGroup(Output):
    def change(self, out, hidden, labels, lengths):
        groups = first_groups(lengths)
        factors = torch.ones(len(hidden)).index_copy(0, groups, 1.0 + labels[groups + 1, -1, -1].clamp_min(0))
        return replace(out, logprobs=out.logprobs * factors[:, None, None])


class SeesTheEndOfItsGroup(Output):
    def change(self, out, hidden, labels, lengths):
        groups = first_groups(lengths) + 1
        factors = torch.ones_like(out.logprobs)
        factors[groups, 0, 0] += labels[groups, -1, -1].clamp_min(0)
        return replace(out, logprobs=out.logprobs * factors)


# -- steps


class Flat(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        return super().step(hidden, state, sample).flatten(1)


class SaysOtherCodes(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        said = super().step(hidden, state, sample)
        return said.where(said >= CODES, (said + 1) % CODES)


class GoesOnBehindEos(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        said = super().step(hidden, state, sample)
        return said.masked_fill(said == pad_code(CODES), 0)


class HandsOutRows(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        return super().step(hidden, state, lambda logits: sample(logits[:, : CODES + 1]))


class MaySayBos(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        code = torch.tensor([bos_code(CODES)])
        return super().step(hidden, state, lambda logits: sample(logits.index_fill(1, code, 0.0)))


class AsksAgain(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        seen = []
        said = super().step(hidden, state, lambda logits: (seen.append(logits), sample(logits))[1])
        sample(seen[-1])
        return said


class AsksOnce(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        seen = []
        return super().step(
            hidden, state, lambda logits: seen[0] if seen else (seen.append(sample(logits)), seen[0])[1]
        )


class StepsElsewhere(Right):
    def step(self, hidden, state, sample, text_embeds=None):
        return super().step(hidden + 1, state, sample)


class WronglyProud(Output):
    def change(self, out, hidden, labels, lengths):
        return replace(out, correct=out.mask & ~out.correct)


class RemembersItself(Right):
    def new_state(self, batch_size):
        self.state = super().new_state(batch_size)

    def step(self, hidden, state, sample, text_embeds=None):
        return super().step(hidden, self.state, sample)


# -- gradients


class Unused(Right):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(2, 2)


class CutOffWithoutGroups(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        out = super().forward(hidden, labels, reply_lengths)
        return out if len(hidden) else replace(out, logprobs=out.logprobs.detach())


class CutOff(Right):
    def forward(self, hidden, labels, reply_lengths, text_embeds=None):
        return super().forward(hidden.detach(), labels, reply_lengths)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LosesFrames, r"logprobs is \(7, 1, 2\), the labels are \(7, 2, 2\)"),
        (LosesCorrect, r"correct is \(7, 4\)"),
        (LosesMask, r"mask is \(6, 2, 2\)"),
        (MasksNothing, "mask must be where a label is"),
        (Wide, "must be float32, not torch.float64"),
        (Unnormalised, "must not be positive"),
        (ScoresWithoutLabel, "must be 0 where there is no label"),
        (CorrectWithoutLabel, "correct must be False where there is no label"),
        (WritesHidden, "hidden must be left as they were given"),
        (WritesLabels, "labels must be left as they were given"),
        (WritesLengths, "lengths must be left as they were given"),
        (DeafToText, "needs_text must see the text"),
        (SeesOtherReplies, "packed together must give what each gives alone"),
        (StumblesOverEmptyReplies, "a reply without groups must change nothing"),
        (SpeaksOfNothing, r"no groups must give no log-probabilities \(0, 2, 2\), not \(1, 2, 2\)"),
        (AveragesOverLabels, "masking a label must change no other label"),
        (ScoresWhatIsMasked, "with every label masked"),
        (CountsEos, "a frame of eos and its first eos alone"),
        (SeesTheWholeReply, "must not see hidden states of later groups"),
        (HearsLoudReplies, "must not see another reply"),
        (Blind, "a group must see its hidden state"),
        (SeesTheNextGroup, "must not see codes of later groups"),
        (SeesTheEndOfItsGroup, "must not see codes that are said after it"),
        (Flat, r"step gives \(2, 4\), not \(2, 2, 2\)"),
        (SaysOtherCodes, "step must return what was sampled"),
        (GoesOnBehindEos, "pad after eos"),
        (HandsOutRows, r"sample got logits \(2, 13\), not \(2, 15\)"),
        (MaySayBos, "logits of bos and pad must be -inf"),
        (AsksAgain, "step must ask for 4 codes, and asks for more"),
        (AsksOnce, "step must ask for 4 codes, not 1"),
        (StepsElsewhere, "stepping must give the log-probabilities of one teacher-forced pass"),
        (WronglyProud, "correct must say whether the label is the most likely code"),
        (RemembersItself, "what is said with one state must not disturb another"),
        (Unused, "no gradient reaches unused.weight, unused.bias where no group is said"),
        (CutOffWithoutGroups, "no gradient reaches .*output.weight where no group is said"),
        (CutOff, "a gradient must reach the hidden state of every group"),
    ],
)
def test_broken_heads_are_caught(broken: type[Right], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_head(broken())


def test_a_parameter_that_learns_only_without_groups_is_caught() -> None:
    class Idle(Right):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.zeros(()))

        def forward(self, hidden, labels, reply_lengths, text_embeds=None):
            out = super().forward(hidden, labels, reply_lengths)
            return out if len(hidden) else replace(out, logprobs=out.logprobs + self.idle)

    with pytest.raises(AssertionError, match=r"no gradient reaches idle$"):
        check_head(Idle())


def test_a_head_that_does_not_read_is_caught() -> None:
    class DoesNotRead(FunAudioHead):
        def read(self, hidden, codes, state, mask=None, text_embeds=None):
            pass

    with pytest.raises(AssertionError, match="a step behind positions that were read"):
        check_head(DoesNotRead(24, 2, 32, TRANSFORMER))


class ReadsInTheFirstRow(FunAudioHead):
    def read(self, hidden, codes, state, mask=None, text_embeds=None, row=None):
        super().read(hidden, codes, state, mask, text_embeds, None if row is None else 0)


class ForgetsWhatItSaidLast(FunAudioHead):
    def new_slots(self, num_slots):
        slots = super().new_slots(num_slots)
        copied = slots.copied

        def copy(row):
            seen = copied(row)
            return replace(seen, previous=torch.full_like(seen.previous, self.pad_row))

        slots.copied = copy
        return slots


class BeginsAnew(FunAudioHead):
    def new_slots(self, num_slots):
        slots = super().new_slots(num_slots)
        join = slots.join
        slots.join = lambda seen=None: join()
        return slots


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (ReadsInTheFirstRow, "a row that speaks must not be disturbed by one that reads"),
        (ForgetsWhatItSaidLast, "a row that joined behind a copy must go on where the copied one was"),
        (BeginsAnew, "a row that joined behind a copy must go on where the copied one was"),
    ],
)
def test_slots_that_read_wrongly_are_caught(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_head(broken(24, 2, 32, TRANSFORMER))
