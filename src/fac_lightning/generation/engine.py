"""Many replies at once: they join, speak and leave while others go on, and each is what it would be alone.

Legend: R replies under way, L positions of a prompt, D width, N rows that speak now, k frames of a group, Q codebooks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fac_lightning.backbones.base import Backbone
from fac_lightning.generation.chunks import ReplyChunk, ReplyChunks
from fac_lightning.generation.conversation import Conversation
from fac_lightning.generation.engine_session import EngineSession
from fac_lightning.generation.fixed_positions import FixedPositions
from fac_lightning.generation.packed_linear import PackedLinears
from fac_lightning.generation.position import Positions
from fac_lightning.generation.prefix import Prefixes
from fac_lightning.generation.prompt import UserTurn, prompt_batch, prompt_text, reply_opening, user_pieces
from fac_lightning.generation.reply import Reply, speak
from fac_lightning.generation.requests import EngineChunk, SpeechRequest
from fac_lightning.generation.sampling import Decoding
from fac_lightning.generation.streams import evaluating
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import MODES, SYSTEM_PROMPTS, ChatFormat, Mode
from fac_lightning.replies import FrameEnd, ReplyRule
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import to_device

__all__ = ["SpeechEngine"]

#: Bytes of composed tables that are made.
MOST_COMPOSED = 2**30


class SpeechEngine:
    """Talk with many at once over one model (continuous batching).

    Every reply under way has a slot; one ``step`` gives each of them its next position, whatever its mode, its sampling
    and its age. Who finds no free slot waits, first come, first served. What a reply says is what ``Generator`` or
    ``Session`` would say with the same seed, in float32 to the last token: rows do not see each other.

    Keys and values lie in memory that is there from the start. A system prompt is computed once and then copied; what a
    conversation has said is never computed again. The host waits for the device once a step.

    Not for several threads at once: all calls come from one.

    Args:
        model: The speech LLM; it runs in eval mode and is left as it was.
        chat: Token ids of the chat format it was trained on.
        tokenizer: Gives replies a waveform; without it they have codes only.
        reply: How spoken replies lie, as in training; ``FrameEnd()`` when None.
        num_slots: Replies under way at once.
        capacity: Positions of the backbone that a slot has room for at first; there is more when one needs it.
        max_waiting: Requests that may wait for a slot; None sets no limit.
        system_prompts: Mode -> system prompt, where it differs from ``SYSTEM_PROMPTS``.
        pack_weights: On a CPU, keep a second copy of the linear layers in the layout of oneDNN's kernels. Steps of many
            replies are faster, for as much memory again as the weights take. Only for float32; elsewhere nothing is
            packed.
        cuda_graph: On a GPU, capture a position as one CUDA graph: backbone, head, sampling and the next embedding. It
            is captured for every set of samplings under way, and anew when room grows. Not run on a GPU so far.
        compile_step: Compile the same with ``torch.compile``, for every set of samplings and room; weights are then not
            packed. A step of fixed shapes goes over all slots and all positions that have room.
        compile_backend: Of ``torch.compile``.
        compose: Look codes up in tables that are multiplied with the code adapter's projection already, k x Q rows of
            the backbone's width for every code (``ComposedCodes``, at most 1 GiB). Sums come in another order, so that
            a reply may differ from a single run where two tokens are as likely but for rounding. Off, it does not.
    """

    def __init__(
        self,
        model: SpeechLM,
        chat: ChatFormat,
        tokenizer: SpeechTokenizer | None = None,
        reply: ReplyRule | None = None,
        num_slots: int = 16,
        capacity: int = 128,
        max_waiting: int | None = None,
        system_prompts: dict[str, str] | None = None,
        pack_weights: bool = True,
        cuda_graph: bool = False,
        compile_step: bool = False,
        compile_backend: str | Callable[..., Any] = "inductor",
        compose: bool = False,
    ) -> None:
        unknown = sorted(set(system_prompts or ()) - set(MODES))
        if unknown:
            raise ValueError(f"system_prompts has unknown modes {unknown}; the modes are {', '.join(MODES)}")
        if num_slots < 1 or (max_waiting is not None and max_waiting < 0):
            raise ValueError(
                f"num_slots must be at least 1 and max_waiting at least 0, got {num_slots} and {max_waiting}"
            )
        self.model, self.chat, self.tokenizer, self.num_slots = model, chat, tokenizer, num_slots
        self.max_waiting, self.system_prompts = max_waiting, {**SYSTEM_PROMPTS, **(system_prompts or {})}
        self.slots = model.backbone.new_slots(num_slots, capacity)
        if cuda_graph and self.slots.device.type != "cuda":
            raise ValueError(
                f"cuda_graph needs a model on a CUDA device, and it is on {self.slots.device}; move it first"
            )
        reply = reply or FrameEnd()
        codes = model.code_adapter.compose(MOST_COMPOSED) if compose and model.code_adapter is not None else None
        if cuda_graph or compile_step:
            backend = compile_backend if compile_step else None
            self._positions: Positions = FixedPositions(model, chat, reply, self.slots, codes, cuda_graph, backend)
        else:
            self._positions = Positions(model, chat, reply, num_slots, codes)
        self._prefixes = Prefixes(model, chat, self.slots)
        self._linears = PackedLinears(model, pack_weights and not compile_step)
        self._waiting: deque[SpeechRequest] = deque()
        self._rows: list[SpeechRequest] = []  # by row of the slots

    @staticmethod
    def suits(model: SpeechLM) -> bool:
        """Whether all parts of a model step together: the backbone has slots, and so has the head if there is one."""
        head = model.head
        voices = head is None or head.new_slots(1) is not None
        return voices and type(model.backbone).new_slots is not Backbone.new_slots

    @property
    def running(self) -> int:
        """Replies that have a slot."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that have none yet."""
        return len(self._waiting)

    def submit(self, turn: UserTurn, mode: str = "S2M", decoding: Decoding | None = None) -> SpeechRequest:
        """Ask for a reply to a single turn; it begins in the next ``step`` that finds a free slot.

        Args:
            turn: What the user says.
            mode: One of ``MODES``.
            decoding: Sampling, seed and the longest reply; greedy by default.

        Raises:
            ValueError: The mode is unknown, the turn lacks what the mode needs, the model lacks a part for it, or too
                many wait already.
        """
        request = self._single(turn, mode, decoding or Decoding())
        self._enqueue(request, self.tokenizer)
        return request

    def session(self, mode: str = "S2M", system: str | None = None, decoding: Decoding | None = None) -> EngineSession:
        """A conversation of many turns. Between its turns it keeps its keys and values, but no slot.

        Args:
            mode: How turns are given and answered, as in ``Session``.
            system: System prompt; that of the mode when None.
            decoding: Sampling and the longest reply; turn ``i`` draws from ``seed + i``.
        """
        prompt = self.system_prompts.get(mode, "") if system is None else system
        conversation = Conversation(self.chat, mode, prompt)
        memory = self._positions.new_memory() if MODES[mode].speaks else None
        enqueue = partial(self._enqueue, tokenizer=self.tokenizer)
        return EngineSession(enqueue, conversation, decoding or Decoding(), memory)

    def step(self) -> list[EngineChunk]:
        """The next position of every reply under way, and what it added; empty when there is nothing to do.

        A reply that writes a chain first adds nothing until it speaks; the last chunk of each has the whole.
        """
        with evaluating(self.model), torch.inference_mode(), self._linears:
            if self._rows:
                self._positions.advance(self._rows, self._advance)
            for _ in range(min(self._free, len(self._waiting))):
                self._admit(self._waiting.popleft())
            if not self._rows:
                return []
            self._positions.choose(self._rows)
        with torch.inference_mode():
            chunks = []
            for request in list(self._rows):
                if not request.writes and request.tokens:
                    chunks.append(EngineChunk(request, request.next_chunk()))
                if request.ended:
                    chunks.append(EngineChunk(request, self._end(request)))
        return chunks

    def run(self) -> Iterator[EngineChunk]:
        """Step until nothing runs and nothing waits. Others may be submitted and cancelled meanwhile."""
        while self._rows or self._waiting:
            yield from self.step()

    def cancel(self, request: SpeechRequest) -> None:
        """Stop a reply where it is; its slot is free at once. One that is over stays as it is.

        ``request.reply`` is what was said until then; None when it had not begun.
        """
        if request.over:
            return
        request.cancelled = True
        if request.running:
            with torch.inference_mode():
                self._end(request)
        else:
            self._waiting.remove(request)

    def generate(self, turns: Sequence[UserTurn], mode: str = "S2M", decoding: Decoding | None = None) -> list[Reply]:
        """One reply per user turn, as ``Generator.generate`` gives them; row ``i`` draws from ``seed + i``.

        Turns beyond the slots take the place of those that are answered. Other replies under way go on.
        """
        decoding = decoding or Decoding()
        asked = [self._single(t, mode, replace(decoding, seed=decoding.seed + i)) for i, t in enumerate(turns)]
        for request in asked:
            self._enqueue(request, tokenizer=None)
        replies: list[Reply] = []
        while len(replies) < len(asked):
            self.step()
            while len(replies) < len(asked) and (reply := asked[len(replies)].reply) is not None:
                replies.append(reply)
        said = [reply.codes for reply in replies if reply.codes is not None]
        if self.tokenizer is None or len(said) < len(replies):
            return replies
        with torch.inference_mode():  # nobody listens meanwhile, so the waveforms are decoded as one batch
            clips, rate = speak(said, self.tokenizer), self.tokenizer.output_rate
        return [replace(reply, audio=clip, sample_rate=rate) for reply, clip in zip(replies, clips, strict=True)]

    def forget_prefixes(self) -> None:
        """Read system prompts anew from now on; for a model whose weights have changed, if nothing is composed."""
        self._prefixes.forget()

    def _single(self, turn: UserTurn, mode: str, decoding: Decoding) -> SpeechRequest:
        turn_pieces = user_pieces(self.chat, turn, mode)
        pieces = [self.chat.system(self.system_prompts[mode]), *turn_pieces, *reply_opening(self.chat, MODES[mode])]
        return SpeechRequest(MODES[mode], decoding, pieces)

    def _enqueue(self, request: SpeechRequest, tokenizer: SpeechTokenizer | None) -> None:
        mode = request.mode
        self._refuse(mode, any(isinstance(piece, Tensor) for piece in request.pieces))
        if self.max_waiting is not None and len(self._waiting) >= self.max_waiting + self._free:
            raise ValueError(
                f"{len(self._waiting)} requests wait for {self._free} free slots and max_waiting is "
                f"{self.max_waiting}: step() until one was answered, or give more num_slots"
            )
        request.begin(self.chat, ReplyChunks(self.chat, tokenizer, mode), self._positions.draws)
        if mode.speaks and request.memory is None:
            request.memory = self._positions.new_memory()
        self._waiting.append(request)

    def _refuse(self, mode: Mode, hears: bool) -> None:
        """Refuse now what would stop the others later."""
        model = self.model
        if mode.speaks and model.head is None:
            raise ValueError("the model has no head, so it cannot speak; give SpeechLM(head=...) or choose a text mode")
        if mode.speaks and model.code_adapter is None:
            raise ValueError("the model has no code_adapter, so it cannot speak; name one or choose a text mode")
        if hears and (model.encoder is None or model.feature_adapter is None):
            raise ValueError(
                "the model has no encoder and feature_adapter, so it hears nothing; name them in the recipe, or take "
                "modes with text input (T2M, T2T, TTS)"
            )

    @property
    def _free(self) -> int:
        return self.num_slots - len(self._rows)

    def _advance(self, embeds: Tensor) -> Tensor:
        return self.model.backbone.step_slots(embeds, self.slots)

    def _admit(self, request: SpeechRequest) -> None:
        """Give a request a slot and show the model its prompt."""
        model, session, pieces = self.model, request.session, request.pieces
        memory, prefix = request.memory, None
        if session is not None and session.seen is not None:
            row = self.slots.join(session.seen)
        else:
            first, *pieces = pieces
            assert isinstance(first, list)
            prefix = self._prefixes.of(first)
            row = self.slots.join(prefix.seen)
        try:
            batch = to_device(prompt_batch([pieces], self.chat, model.geometry), self.slots.device)
            read = model.read(batch)
            embeds, text = read.embeds[None], prompt_text(model, read.batch)[None]
            before = None if session is None else session.conversation.before
            if before is not None:
                embeds, text = torch.cat([before.pending, embeds], 1), torch.cat([before.pending_text, text], 1)
            hidden = model.backbone.step_slots(embeds, self.slots, row)
            if memory is not None and prefix is not None:
                memory.begin(prefix)
        except Exception:
            self.slots.leave(row)
            request.cancelled = True
            raise
        if memory is not None:  # of the last position the head says its first group
            memory.begin_reply()
            memory.listen(hidden[:, :-1], text[:, :-1])
        request.pieces, request.running = [], True
        self._rows.append(request)
        self._positions.join(hidden[:, -1], request)

    def _end(self, request: SpeechRequest) -> ReplyChunk:
        """Take a reply out of its slot; the last chunk, which has the whole."""
        row = self._rows.index(request)
        decoded = self._positions.decoded(row, request)
        if request.session is not None:
            request.session.release(decoded, self.slots.copied(row))
        self.slots.leave(row)
        self._positions.leave(row, request)
        self._rows[row] = self._rows[-1]
        self._rows.pop()
        request.running = False
        assert request.chunks is not None
        chunk = request.chunks.last(decoded)
        request.reply = chunk.reply
        return chunk
