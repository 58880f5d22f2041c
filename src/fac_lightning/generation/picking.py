"""Choosing tokens for rows that each have their own settings, place in the reply and random numbers.

Legend: R rows, V vocabulary, S special text tokens, N rows that speak, k frames of a group, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fac_lightning.generation.sampling import Sampling, pick
from fac_lightning.heads.base import SpeechHead
from fac_lightning.prompts import IM_START, ChatFormat
from fac_lightning.replies import ReplyRule
from fac_lightning.types import bos_code, code_vocab_size, eos_code, pad_code

__all__ = ["CodePicker", "CodeRules", "TextRules", "pick_kinds", "pick_rows"]


def pick_rows(logits: Tensor, samplings: Sequence[Sampling], uniform: Tensor, seen: Tensor | None) -> Tensor:
    """Next tokens ``(R,)`` of logits ``(R, V)``, each row by its own sampling; rows of one sampling are picked at once.

    Args:
        logits: ``(R, V)``; forbidden tokens at -inf.
        samplings: One for each row.
        uniform: ``(R,)`` in [0, 1).
        seen: ``(R, V)`` bool, tokens that the row's reply already holds; None where no row is penalised for them.
    """
    kinds = dict.fromkeys(samplings)
    if len(kinds) == 1:
        return pick(logits, samplings[0], uniform, seen)
    tokens = logits.new_empty(len(logits), dtype=torch.int64)
    for kind in kinds:
        rows = torch.tensor([row for row, sampling in enumerate(samplings) if sampling == kind], device=logits.device)
        tokens[rows] = pick(logits[rows], kind, uniform[rows], None if seen is None else seen[rows])
    return tokens


def pick_kinds(
    logits: Tensor, uniform: Tensor, seen: Tensor | None, kinds: Sequence[Sampling], which: Tensor
) -> Tensor:
    """``pick_rows`` with shapes that do not depend on who samples how: all rows by each of ``kinds``, then a choice.

    Args:
        logits: ``(R, V)``; forbidden tokens at -inf.
        uniform: ``(R,)`` in [0, 1).
        seen: ``(R, V)`` bool; None where no kind penalises.
        kinds: Samplings in use.
        which: ``(R,)`` int64, the row's number among ``kinds``.
    """
    tokens = pick(logits, kinds[0], uniform, seen)
    for number, kind in enumerate(kinds[1:], 1):
        tokens = torch.where(which == number, pick(logits, kind, uniform, seen), tokens)
    return tokens


class TextRules:
    """Which text tokens are out of place, as ``TextStream`` has it: by whether speech is due and what ends the text.

    Args:
        chat: Token ids of the marks.
        device: Of the logits.
    """

    def __init__(self, chat: ChatFormat, device: torch.device) -> None:
        never = {chat.pad, chat.audio, *chat.encode(IM_START)}
        marks = {chat.audio_bos, chat.audio_eos, chat.im_end}
        special = sorted(never | marks | {chat.sil})
        self.silence = chat.sil
        self._kinds = {None: 0, chat.audio_eos: 1, chat.im_end: 2, chat.audio_bos: 3}
        open_ended = [token in never | marks for token in special]
        ending = [[t in never | {chat.sil} | marks - {stop} for t in special] for stop in list(self._kinds)[1:]]
        self.special = torch.tensor(special, device=device)  # (S,)
        self.forbidden = torch.tensor([open_ended, *ending], device=device)  # (kinds, S)

    def forbid(self, logits: Tensor, stops: Sequence[int | None]) -> Tensor:
        """Logits ``(R, V)`` float32 without what is out of place; ``stops`` end the rows' texts, None: nothing can."""
        return self.forbid_kinds(logits, torch.tensor(self.kinds(stops), device=logits.device))

    def kinds(self, stops: Sequence[int | None]) -> list[int]:
        """What each of ``stops`` forbids, as a number."""
        return [self._kinds[stop] for stop in stops]

    def forbid_kinds(self, logits: Tensor, kinds: Tensor) -> Tensor:
        """``forbid`` by the ``kinds`` ``(R,)``."""
        logits = logits.float()
        special = logits[:, self.special].masked_fill(self.forbidden[kinds], -torch.inf)
        return logits.index_copy(1, self.special, special)


class CodeRules:
    """Which codes are out of place, as ``SpeechStream`` has it.

    Args:
        head: Says the codes.
        reply: How a spoken reply lies.
        device: Of the logits.

    Raises:
        ValueError: The head cannot say what the rule wants.
    """

    def __init__(self, head: SpeechHead, reply: ReplyRule, device: torch.device) -> None:
        if reply.says_bos and not head.says_special:
            raise ValueError(
                f"{type(head).__name__} cannot say bos, and by {reply} the head says the lead-in; take the rule "
                "fac_lightning.replies.FrameEnd, or a head that says_special (FunAudioHead)"
            )
        self.reply, self.order, self.size = reply, head.order, head.codebook_size
        self.group_size, self.num_codebooks = head.group_size, head.num_codebooks
        forbidden = torch.zeros(2, code_vocab_size(self.size), dtype=torch.bool)  # [a code was said, none was]
        forbidden[:, [bos_code(self.size), pad_code(self.size)]] = True
        forbidden[1, bos_code(self.size)] = not reply.says_bos
        inside = forbidden[0].clone()
        inside[eos_code(self.size)] = True  # a frame ends the speech as a whole, so its first code decides
        self.forbidden, self.inside = forbidden.to(device), inside.to(device)


class CodePicker:
    """Picks the codes of one group for the rows that speak; what a head calls ``sample``.

    Args:
        rules: Of the head.
        choose: Picks codes ``(N,)`` of logits ``(N, V)``, uniform numbers ``(N,)`` and what was seen ``(N, V)``.
        noise: Uniform numbers ``(N, k * Q)``, in the order in which the head asks.
        leads: ``(N,)`` bool, rows that have said no real code.
        seen: ``(N, Q, V)`` bool, codes that the row's reply already holds; moves on. None penalises nothing.
    """

    def __init__(
        self,
        rules: CodeRules,
        choose: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        noise: Tensor,
        leads: Tensor,
        seen: Tensor | None,
    ) -> None:
        self.rules, self.choose, self.noise, self.leads, self.seen = rules, choose, noise, leads, seen
        self.ends = torch.full_like(leads, rules.group_size, dtype=torch.int64)  # frames of the row in this group
        self.frame_leads = torch.zeros_like(leads)  # the current frame is one of bos
        self.asked = 0

    def __call__(self, logits: Tensor) -> Tensor:
        """Codes ``(N,)`` from logits ``(N, V)`` of the next place."""
        rules = self.rules
        frame, codebook = divmod(rules.order[self.asked], rules.num_codebooks)
        if codebook > 0:
            logits = logits.masked_fill(rules.inside, -torch.inf)
        elif rules.reply.says_bos:
            logits = logits.masked_fill(rules.forbidden[self.leads.long()], -torch.inf)
        else:
            logits = logits.masked_fill(rules.forbidden[0], -torch.inf)
        seen = None if self.seen is None else self.seen[:, codebook]
        code = self.choose(logits, self.noise[:, self.asked], seen)
        if rules.reply.says_bos:
            if codebook > 0:  # a frame leads in as a whole
                code = code.masked_fill(self.frame_leads, bos_code(rules.size))
            self.frame_leads = code == bos_code(rules.size)
            self.leads = self.leads & (code >= rules.size)
        code = code.masked_fill(self.ends <= frame, rules.reply.filler(rules.size))
        self.ends = torch.where(code == eos_code(rules.size), self.ends.clamp_max(frame), self.ends)
        if seen is not None:
            seen.scatter_(1, code[:, None], True)
            seen[:, bos_code(rules.size)].fill_(False)  # the lead-in repeats by design
        self.asked += 1
        return code
