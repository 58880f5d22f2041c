"""Tiny parts with every slot filled: whole models in milliseconds, on a CPU and without a network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fac_lightning.adapters import ConcatCodeGrouping, ConcatGrouping, SumFusion
from fac_lightning.backbones import HFBackbone
from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.heads import RefinedHead, SpeechHead
from fac_lightning.models import SpeechLM
from fac_lightning.testing.families import family_config
from fac_lightning.types import IGNORE, SpeechFeatures, SpeechTextBatch, Waveforms, bos_code, eos_code, pad_code

__all__ = ["FrameEncoder", "tiny_backbone", "tiny_batch", "tiny_speech_lm"]


class FrameEncoder(SpeechEncoder):
    """The least encoder that keeps the contract: each hop of samples is projected on its own.

    Args:
        sample_rate: Of the waveforms, Hz.
        hop_length: Samples per frame.
        dim: Width of a frame.
    """

    def __init__(self, sample_rate: int = 1000, hop_length: int = 40, dim: int = 8) -> None:
        super().__init__()
        self.sample_rate, self.hop_length, self.dim = sample_rate, hop_length, dim
        self.proj = nn.Linear(hop_length, dim)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> SpeechFeatures:
        """Features ``(B, T, dim)`` of waveforms ``(B, S)``."""
        if lengths is None:
            lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
        inside = torch.arange(audio.shape[1], device=audio.device) < lengths[:, None]
        padded = F.pad(audio.masked_fill(~inside, 0), (0, -audio.shape[1] % self.hop_length))
        frames = -(-lengths // self.hop_length)
        features = self.proj(padded.unflatten(1, (-1, self.hop_length)).to(self.proj.weight.dtype))  # (B, T, dim)
        keep = torch.arange(features.shape[1], device=audio.device) < frames[:, None]
        return SpeechFeatures(features=features.masked_fill(~keep[..., None], 0), lengths=frames)


def tiny_backbone(
    vocab_size: int = 320,
    dim: int = 16,
    family: str = "qwen3",
    num_layers: int = 2,
    tied: bool = False,
    seed: int = 0,
) -> HFBackbone:
    """A transformers model of a few thousand parameters with fixed random weights.

    Args:
        vocab_size: Token ids.
        dim: Width.
        family: One of ``BACKBONE_FAMILIES``.
        num_layers: Blocks.
        tied: Embedding and output matrix are one.
        seed: Of the weights; the caller's random state is left as it was.
    """
    config = family_config(family, vocab_size, dim, num_layers, tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HFBackbone(config=config)


def tiny_speech_lm(
    vocab_size: int = 320,
    dim: int = 16,
    group_size: int = 5,
    codebook_size: int = 32,
    num_codebooks: int = 1,
    sample_rate: int = 1000,
    hop_length: int = 40,
    head: SpeechHead | None = None,
    encoder: SpeechEncoder | None = None,
    seed: int = 0,
) -> SpeechLM:
    """A ``SpeechLM`` with all slots filled: 25 Hz features and codes, 5 Hz positions at the default sizes.

    Args:
        vocab_size: Text token ids.
        dim: Width of the backbone.
        group_size: Frames per position, of codes and of features.
        codebook_size: Codes per codebook.
        num_codebooks: Q.
        sample_rate: Of user waveforms, Hz.
        hop_length: Samples per frame of user features.
        head: Another head; a one-layer ``RefinedHead`` when None.
        encoder: Another encoder; ``FrameEncoder(sample_rate, hop_length)`` when None.
        seed: Of the weights; the caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = encoder or FrameEncoder(sample_rate, hop_length)
        return SpeechLM(
            backbone=tiny_backbone(vocab_size, dim, seed=seed),
            head=head
            or RefinedHead(dim, group_size, codebook_size, num_codebooks, width=16, num_layers=1, num_heads=2),
            encoder=encoder,
            feature_adapter=ConcatGrouping(encoder.dim, group_size, dim),
            code_adapter=ConcatCodeGrouping(codebook_size, group_size, dim, num_codebooks),
            fusion=SumFusion(),
        )


def tiny_batch(model: SpeechLM, rows: int = 2, seed: int = 0, speech: bool = True) -> SpeechTextBatch:
    """A packed line of random rows for ``model``: a prompt, user speech, then a reply in text and codes.

    Rows differ in length. It has the shape of what layout makes, not its words.

    Args:
        model: Whose geometry the batch fits; all slots filled when ``speech``.
        rows: R.
        seed: Of the contents.
        speech: False gives text-only rows.
    """
    geometry = model.geometry
    k, q, size = geometry.group_size, geometry.num_codebooks, geometry.codebook_size
    generator = torch.Generator().manual_seed(seed)
    prompt, heard = [2 + i % 3 for i in range(rows)], [(1 + i % 2) * int(speech) for i in range(rows)]
    said = [2 + i % 3 for i in range(rows)]
    lengths = torch.tensor([p + h + s + 1 for p, h, s in zip(prompt, heard, said, strict=True)])
    total = int(lengths.sum())
    text_ids = torch.randint(0, geometry.vocab_size, (total,), generator=generator)
    text_mask, text_labels = torch.ones(total, dtype=torch.bool), torch.full((total,), IGNORE)
    starts = (lengths.cumsum(0) - lengths).tolist()
    features: list[int] = []
    inputs: list[int] = []
    outputs: list[int] = []
    codes, labels, samples = [], [], []
    for start, p, h, s in zip(starts, prompt, heard, said, strict=True):
        reply = start + p + h  # from here the reply is predicted
        features += range(start + p, reply)
        text_labels[reply : reply + s + 1] = torch.randint(0, geometry.vocab_size, (s + 1,), generator=generator)
        if not speech:
            continue
        samples.append(h * geometry.samples_per_position - 3)
        stream = torch.randint(0, size, (s * k, q), generator=generator)
        stream[s * k - 3], stream[s * k - 2 :] = eos_code(size), pad_code(size)
        groups = stream.view(s, k, q)
        codes.append(groups)
        labels.append(groups.where(groups != pad_code(size), IGNORE))
        inputs += range(reply + 1, reply + 1 + s)
        outputs += range(reply, reply + s)
    text_mask[features] = False
    longest = max(samples, default=0)
    empty = torch.zeros(0, k, q, dtype=torch.long)
    batch = SpeechTextBatch(
        text_ids=text_ids,
        text_mask=text_mask,
        position_ids=torch.cat([torch.arange(n) for n in lengths.tolist()]),
        lengths=lengths,
        text_labels=text_labels,
        codes=torch.cat([empty, *codes]),
        code_positions=torch.tensor(inputs, dtype=torch.long),
        speech_positions=torch.tensor(outputs, dtype=torch.long),
        speech_labels=torch.cat([empty, *labels]),
        reply_lengths=torch.tensor(said if speech else [], dtype=torch.long),
        audio=Waveforms(
            torch.rand(len(samples), longest, generator=generator) - 0.5,
            torch.tensor(samples, dtype=torch.long),
            geometry.sample_rate,
        ),
        feature_positions=torch.tensor(features, dtype=torch.long),
        capacity=total,
        seconds=sum(samples) / geometry.sample_rate,
        text_token_total=int((text_labels != IGNORE).sum()),
        speech_token_total=sum(int((x != IGNORE).sum()) for x in labels),
        ids=tuple(f"row{i}/S2M" for i in range(rows)),
    )
    assert bos_code(size) not in batch.speech_labels
    return batch
