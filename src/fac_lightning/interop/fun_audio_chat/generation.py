"""Generation as the released code does it, row by row alike whether a row comes alone or in a batch.

At each position the text head picks a token and the refined head says a group of codes. Speech is *on* behind
``<|audio_bos|>``: groups are then recorded and fed back; a group with ``eos`` in it turns it off, writes the group as
``eos`` and the text token of that position as ``<|audio_eos|>``. The head runs at every position, on or off, because
what it said stays in its cache. All state lives in objects of one call.

Legend: B rows, L prompt positions, k codes per group, D width, V text vocabulary, C rows of the code table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fac_lightning.adapters import FunAudioCodeGrouping
from fac_lightning.generation.sampling import Sampling, penalize_repetition, pick, uniforms
from fac_lightning.heads import FunAudioHead
from fac_lightning.interop.fun_audio_chat.inputs import merge

if TYPE_CHECKING:
    from fac_lightning.interop.fun_audio_chat.model import FunAudioChat

__all__ = ["GenerationOptions", "SpeechPolicy", "generate"]

_INPUTS = (
    "attention_mask",
    "speech_ids",
    "speech_attention_mask",
    "input_features",
    "feature_attention_mask",
    "feature_exist_mask",
)


@dataclass(frozen=True)
class SpeechPolicy:
    """The released switches (``sp_gen_kwargs``), with the released class's defaults.

    Args:
        text_greedy: Text is the most likely token, without penalty, forbidden words or draw; speech is not concerned.
        only_crq_sampling: Recorded codes are those that the head picked for itself. If false they are picked anew from
            its logits, while the head goes on from its own.
        disable_speech: Text alone; the head does not run.
        force_text_abos: The first token of every answer is ``<|audio_bos|>``, which turns speech on.
    """

    text_greedy: bool = False
    only_crq_sampling: bool = True
    disable_speech: bool = False
    force_text_abos: bool = False


@dataclass(frozen=True)
class GenerationOptions:
    """What of transformers' generation arguments is known here; the rest is refused rather than ignored."""

    max_new_tokens: int
    eos_token_id: tuple[int, ...]
    pad_token_id: int
    sampling: Sampling = field(default_factory=Sampling)
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    streamer: Any = None

    @classmethod
    def of(cls, defaults: Any, given: Mapping[str, Any], prompt: int) -> GenerationOptions:
        """From a checkpoint's ``GenerationConfig`` and the caller's arguments.

        Raises:
            ValueError: An argument is not known, or means a way of searching that is not offered.
        """
        known = {
            "max_new_tokens",
            "max_length",
            "do_sample",
            "temperature",
            "top_k",
            "top_p",
            "repetition_penalty",
            "length_penalty",  # only beams know it
            "num_beams",
            "bad_words_ids",
            "eos_token_id",
            "pad_token_id",
            "streamer",
            "seed",
            "use_cache",
        }
        unknown = sorted(given.keys() - known)
        if unknown:
            raise ValueError(f"generate does not know {', '.join(unknown)}; it takes {', '.join(sorted(known))}")

        def setting(name: str, default: Any = None) -> Any:
            value = given[name] if name in given else getattr(defaults, name, None)
            return default if value is None else value

        if setting("num_beams", 1) != 1:
            raise ValueError(f"num_beams {setting('num_beams')} is not offered: speech is not searched; leave it at 1")
        if setting("use_cache", True) is False and "use_cache" in given:
            raise ValueError("use_cache False is not offered: the head needs what it said; leave it out")
        eos = setting("eos_token_id")
        if eos is None:
            raise ValueError("nothing says how an answer ends: give eos_token_id (the id of <|im_end|>)")
        ends = tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
        longest = given.get("max_new_tokens")
        if longest is None and given.get("max_length") is not None:
            longest = given["max_length"] - prompt
        if longest is None:
            longest = getattr(defaults, "max_new_tokens", None) or (setting("max_length", 20) - prompt)
        if longest < 1:
            raise ValueError(f"there is no room for an answer: the prompt has {prompt} positions; set max_new_tokens")
        sampled = bool(setting("do_sample", False))
        return cls(
            max_new_tokens=int(longest),
            eos_token_id=ends,
            pad_token_id=int(setting("pad_token_id", ends[0])),
            sampling=Sampling(
                temperature=float(setting("temperature", 1.0)) if sampled else 0.0,
                top_k=int(setting("top_k", 50)) if sampled else 0,
                top_p=float(setting("top_p", 1.0)) if sampled else 1.0,
                repetition_penalty=float(setting("repetition_penalty", 1.0)),
            ),
            bad_words_ids=tuple(tuple(words) for words in setting("bad_words_ids", ())),
            seed=given.get("seed"),
            streamer=given.get("streamer"),
        )


def generate(
    chat: FunAudioChat, input_ids: Tensor, switches: Mapping[str, Any], given: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """See :meth:`FunAudioChat.generate`."""
    unknown = sorted(switches.keys() - {f.name for f in fields(SpeechPolicy)})
    if unknown:
        known = ", ".join(f.name for f in fields(SpeechPolicy))
        raise ValueError(f"sp_gen_kwargs does not know {', '.join(unknown)}; it takes {known}")
    policy = SpeechPolicy(**switches)
    inputs = {name: given.pop(name) for name in _INPUTS if name in given}
    for name in ("text_ids", "text_attention_mask", "labels"):
        if given.pop(name, None) is not None:
            raise ValueError(f"{name} belongs to training; generate takes the prompt alone")
    options = GenerationOptions.of(chat.generation_config, given, input_ids.shape[1])
    call = _Call(chat, input_ids, inputs, policy, options)
    return call.run()


class _Call:
    """One call of generate: its caches and what its rows said so far."""

    def __init__(
        self,
        chat: FunAudioChat,
        input_ids: Tensor,
        inputs: dict[str, Any],
        policy: SpeechPolicy,
        options: GenerationOptions,
    ) -> None:
        model, device, rows = chat.model, chat.device, len(input_ids)
        self.backbone, self.policy, self.options, self.ids = model.backbone, policy, options, chat.ids
        self.text = chat.config["text_config"]
        self.tokens = input_ids.to(device)
        mask = inputs.pop("attention_mask", None)
        self.mask = torch.ones_like(self.tokens, dtype=torch.bool) if mask is None else mask.to(device) > 0
        if not bool(self.mask[:, -1].all()):
            raise ValueError("the batch is padded on the right; generation needs it on the left (padding_side='left')")
        moved = {name: value.to(device) for name, value in inputs.items() if value is not None}
        merged = merge(model, self.ids, self.tokens, **moved)
        self.embeds, self.text_embeds = merged.embeds, merged.text_embeds
        self.position = torch.zeros(rows, dtype=torch.int64, device=device)
        self.cache = self.backbone.new_cache()
        self.prompt_mask = self.mask
        self.speech = None
        if model.head is not None and not policy.disable_speech:
            assert isinstance(model.head, FunAudioHead)
            assert isinstance(model.code_adapter, FunAudioCodeGrouping)
            self.speech = _Speech(model.head, model.code_adapter, policy, options.sampling, rows, self.ids)
        draws = 1 + (2 * self.ids.group_size if self.speech else 0)
        if options.sampling.temperature > 0:
            seeds = _seeds(options.seed, rows)
            self.noise = uniforms(seeds, (options.max_new_tokens, draws), device)
        else:
            self.noise = torch.zeros(1, 1, 1, device=device).expand(rows, options.max_new_tokens, draws)

    def run(self) -> tuple[Tensor, Tensor]:
        """Ids with the prompt ``(B, L + new)`` and recorded codes ``(B, groups * k)``."""
        rows, device = len(self.tokens), self.tokens.device
        finished = torch.zeros(rows, dtype=torch.bool, device=device)
        ends = torch.tensor(self.options.eos_token_id, device=device)
        audio_bos, audio_eos = self.text["audio_bos_index"], self.text["audio_eos_index"]
        opened = self.tokens[:, -1] == audio_bos  # speech is on from the start
        on = opened.clone()
        self._stream(self.tokens)
        for step in range(self.options.max_new_tokens):
            hidden = self._advance()
            group = None
            if self.speech is not None:
                group = self.speech.say(hidden, self.text_embeds, self.prompt_mask, self.noise[:, step, 1:])
            token = self._next_text(hidden[:, -1], self.noise[:, step, 0])
            if self.policy.force_text_abos and step == 0:
                token = torch.where(opened, token, audio_bos)
            token = torch.where(finished, self.options.pad_token_id, token)
            ended = finished | torch.isin(token, ends)
            if self.speech is not None and group is not None:
                closed = self.speech.record(group, on & ~finished)
                token = torch.where(closed, audio_eos, token)
                on = on & ~closed
            self.tokens = torch.cat([self.tokens, token[:, None]], 1)
            self._stream(token)
            if self.options.streamer is not None and self.speech is not None and bool(self.speech.kept[-1].any()):
                self._stream(self.speech.groups[-1])
            finished = ended
            if bool(finished.all()):
                break
            fed = on  # a group was recorded at this position and goes in with the token
            on = on | (token == audio_bos)
            self._prepare(token, fed)
        if self.options.streamer is not None:
            self.options.streamer.end()
        empty = torch.zeros(rows, 0, dtype=torch.int64, device=device)
        return self.tokens, empty if self.speech is None else self.speech.recorded()

    def _advance(self) -> Tensor:
        """Hidden states ``(B, M, D)`` of the positions that wait."""
        new = self.mask[:, -self.embeds.shape[1] :]
        counted = new.cumsum(1)
        position_ids = (self.position[:, None] + counted - 1).clamp_min(0)
        self.position = self.position + counted[:, -1]
        return self.backbone.step(self.embeds, self.mask, position_ids, self.cache)

    def _prepare(self, token: Tensor, fed: Tensor) -> None:
        """The next position: the token, and in rows ``fed`` ``(B,)`` the mean of it and the group just recorded."""
        self.text_embeds = self.backbone.embed(token)[:, None]
        self.embeds = self.text_embeds
        if self.speech is not None:
            both = (self.text_embeds + self.speech.feedback().to(self.text_embeds.dtype)) / 2
            self.embeds = torch.where(fed[:, None, None], both, self.text_embeds)
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        self.prompt_mask = self.mask[:, -1:]

    def _next_text(self, hidden: Tensor, uniform: Tensor) -> Tensor:
        """Text tokens ``(B,)`` after hidden states ``(B, D)``."""
        logits = self.backbone.logits(hidden).float()
        if self.policy.text_greedy:
            return logits.argmax(-1)
        sampling, seen = self.options.sampling, None
        # the prompt counts; padding does not, so a row is what it is alone
        real = self.mask[:, : self.tokens.shape[1]]
        history = torch.where(real, self.tokens, self.tokens[:, -1:])
        if sampling.repetition_penalty != 1.0:
            seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, history, True)
            logits = penalize_repetition(logits, seen, sampling.repetition_penalty)
        for *before, last in self.options.bad_words_ids:
            reached = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
            if len(before) > history.shape[1]:
                continue
            if before:
                reached = (history[:, -len(before) :] == history.new_tensor(before)).all(1)
            logits[:, last] = logits[:, last].masked_fill(reached, -torch.inf)
        plain = Sampling(sampling.temperature, sampling.top_k, sampling.top_p)
        return pick(logits, plain, uniform)

    def _stream(self, tokens: Tensor) -> None:
        if self.options.streamer is not None:
            self.options.streamer.put(tokens.cpu())


class _Speech:
    """The head's side: its cache, the codes recorded for each row, and their feedback."""

    def __init__(
        self,
        head: FunAudioHead,
        adapter: FunAudioCodeGrouping,
        policy: SpeechPolicy,
        sampling: Sampling,
        rows: int,
        ids: Any,
    ) -> None:
        self.head, self.adapter, self.policy, self.sampling, self.ids = head, adapter, policy, sampling, ids
        self.state = head.new_state(rows)
        # before anything was said the released code embeds bos at every place of the prompt
        bos = int(head.rows[head.codebook_size])
        self.state.previous = torch.full_like(self.state.previous, bos)
        self.seen = torch.zeros(rows, len(head.table), dtype=torch.bool, device=head.table.device)
        self.groups: list[Tensor] = []  # (B, k)
        self.kept: list[Tensor] = []  # (B,) bool

    def say(self, hidden: Tensor, text_embeds: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Rows of the table ``(B, k)`` said after the last of new positions ``(B, M, D)``."""
        k = self.ids.group_size
        vectors = self.head.split(self.head.condition(hidden, text_embeds)).unflatten(-1, (k, self.head.dim))
        places, masks = vectors.flatten(1, 2), mask.repeat_interleave(k, 1)  # (B, M * k, D)
        seen, said, recorded = self.seen.clone(), [], []
        for frame in range(k):
            first = 0 if frame == 0 else places.shape[1] - k + frame
            last = places.shape[1] - k + frame + 1
            logits = self.head.advance(places[:, first:last], self.state, masks[:, first:last])
            code = pick(logits, self.sampling, noise[:, frame], seen)
            said.append(code)
            if not self.policy.only_crq_sampling:
                recorded.append(pick(logits, self.sampling, noise[:, k + frame], self.seen))
            self.state.previous = code
            seen.scatter_(1, code[:, None], True)
        return torch.stack(recorded or said, 1)

    def record(self, group: Tensor, on: Tensor) -> Tensor:
        """Keep groups ``(B, k)`` of the rows that speak; gives the rows ``(B,)`` whose speech ends here."""
        closed: Tensor = on & (group == self.ids.speech_eos).any(1)
        group = torch.where(closed[:, None], self.ids.speech_eos, group)
        self.groups.append(group)
        self.kept.append(on)
        said = torch.zeros_like(self.seen).scatter_(1, group, True)
        self.seen = self.seen | (said & on[:, None])
        return closed

    def feedback(self) -> Tensor:
        """Embeddings ``(B, 1, D)`` of the last groups."""
        embeds: Tensor = self.adapter.embed_rows(self.groups[-1])[:, None]
        return embeds

    def recorded(self) -> Tensor:
        """Codes ``(B, groups * k)`` of each row from its first on, filled with pad."""
        kept = torch.stack(self.kept, 1)  # (B, steps)
        groups = torch.stack(self.groups, 1)  # (B, steps, k)
        longest = int(kept.sum(1).max())
        out = groups.new_full((len(groups), longest, groups.shape[2]), self.ids.speech_pad)
        places = kept.cumsum(1) - 1
        row, step = kept.nonzero(as_tuple=True)
        out[row, places[row, step]] = groups[row, step]
        return out.flatten(1)


def _seeds(seed: int | None, rows: int) -> list[int]:
    """One seed a row; without ``seed`` from torch's own generator, so that ``torch.manual_seed`` counts."""
    if seed is not None:
        return [seed + row for row in range(rows)]
    drawn: list[int] = torch.randint(2**62, (rows,)).tolist()
    return drawn
