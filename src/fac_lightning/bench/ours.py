"""Our own model as an ``Implementation``: what the others are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fac_lightning.bench.conversations import Conversation, pack
from fac_lightning.bench.sizes import BenchSizes, build_model
from fac_lightning.bench.words import WordTokenizer
from fac_lightning.generation import Decoding, Generator, UserTurn
from fac_lightning.models import SpeechLM
from fac_lightning.prompts import ChatFormat
from fac_lightning.tasks import SpeechSFT
from fac_lightning.types import SpeechTextBatch

__all__ = ["OurImplementation"]


class OurImplementation:
    """``SpeechSFT`` over a ``SpeechLM``, without a trainer around it; the optimizer is the task's.

    Args:
        group_size: Frames to a position; that of the sizes when None.
        refined: With the refined head.
    """

    model: SpeechLM
    task: SpeechSFT
    optimizer: torch.optim.Optimizer

    def __init__(self, group_size: int | None = None, refined: bool = True) -> None:
        self.group_size, self.refined = group_size, refined

    def build(self, sizes: BenchSizes, device: str) -> None:
        """See ``Implementation.build``."""
        self.device = device
        self.model = build_model(sizes, device, self.group_size, self.refined)
        self.task = SpeechSFT(self.model)
        self.task.train()
        self.optimizer = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad], lr=1e-4, betas=self.task.betas, fused=True
        )

    def train_batch(self, conversations: list[Conversation]) -> SpeechTextBatch:
        """See ``Implementation.train_batch``."""
        return pack(conversations, self.model.geometry).to(self.device)

    def train_step(self, batch: Any) -> float:
        """See ``Implementation.train_step``."""
        loss = self.task.loss(self.task(batch), batch.text_token_total, batch.speech_token_total)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    @torch.no_grad()
    def encode(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """See ``Implementation.encode``."""
        assert self.model.encoder is not None
        features: Tensor = self.model.encoder(audio, lengths).features
        return features

    def generate(self, conversation: Conversation, groups: int) -> Tensor:
        """See ``Implementation.generate``."""
        chat = ChatFormat(WordTokenizer(self.model.backbone.vocab_size))
        generator = Generator(self.model, chat, system_prompts={"S2M": conversation.system})
        turn = UserTurn(audio=torch.from_numpy(conversation.audio))
        codes = generator.generate([turn], "S2M", Decoding(max_positions=groups))[0].codes
        assert codes is not None
        return codes[:, 0]
