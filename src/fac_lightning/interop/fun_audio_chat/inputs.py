"""The released model's keyword inputs become embeddings and labels.

The rules are those of the released code (``FunAudioChatForConditionalGeneration.forward``), with nothing of the
caller's tensors changed.

Legend: B rows, S text positions, A audios, E audios with a waveform, T speech tokens per audio (whole groups),
k speech tokens per group, D width, V rows of the code table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.adapters import FunAudioCodeGrouping
from fac_lightning.encoders import FunAudioEncoder
from fac_lightning.models import SpeechLM
from fac_lightning.types import IGNORE

__all__ = ["Merged", "StreamIds", "merge"]


@dataclass(frozen=True)
class StreamIds:
    """Ids by which the streams are joined, as the configuration names them."""

    audio: int  # text id of a position that an audio fills
    audio_eos: int
    silence: int  # fills a transcript that is shorter than its speech
    text_end: tuple[int, ...]  # ids that pad transcripts
    text_fill: int  # id that pads transcripts to the speech's length
    speech_pad: int
    speech_eos: int
    group_size: int
    adds: bool  # user features are added to the user's codes; else they replace them

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> StreamIds:
        """From the released configuration."""
        audio, text = config["audio_config"], config["text_config"]
        ends = tuple(text[name] for name in ("eos_token_id", "pad_token_id") if isinstance(text.get(name), int))
        pad = text.get("pad_token_id")
        return cls(
            audio=config["audio_token_index"],
            audio_eos=text["audio_eos_index"],
            silence=text["sil_index"],
            text_end=ends,
            # a pad id of 0 counts as none in the released code
            text_fill=pad or text.get("eos_token_id") or 0,
            speech_pad=audio["pad_token_id"],
            speech_eos=audio["eos_token_id"],
            group_size=audio["group_size"],
            adds=audio.get("continuous_features_mode") == "add",
        )


@dataclass(frozen=True)
class Merged:
    """What goes into the backbone and the head."""

    embeds: Tensor  # (B, S, D)
    text_embeds: Tensor  # (B, S, D), what the head is told of the text
    text_labels: Tensor | None  # (B, S), aligned with positions, not shifted
    speech_labels: Tensor | None  # (B, S * k) rows of the code table, aligned with positions


def merge(
    model: SpeechLM,
    ids: StreamIds,
    input_ids: Tensor,
    labels: Tensor | None = None,
    speech_ids: Tensor | None = None,
    speech_attention_mask: Tensor | None = None,
    input_features: Tensor | None = None,
    feature_attention_mask: Tensor | None = None,
    feature_exist_mask: Tensor | None = None,
    text_ids: Tensor | None = None,
    text_attention_mask: Tensor | None = None,
) -> Merged:
    """Join text, speech and transcripts at the backbone's positions.

    Args:
        model: Has the parts.
        ids: Of the configuration.
        input_ids: ``(B, S)``.
        labels: ``(B, S)`` or None.
        speech_ids: Rows of the code table ``(A, T')``, audio after audio in the order of their positions.
        speech_attention_mask: ``(A, T')``, 1 where a token is.
        input_features: Log-mel ``(E, M, F)``.
        feature_attention_mask: ``(E, F)``.
        feature_exist_mask: ``(A,)`` bool, audios that have features; None for all.
        text_ids: Transcripts ``(A, Lt)``.
        text_attention_mask: ``(A,)`` bool, audios that have a transcript.

    Raises:
        ValueError: Inputs do not agree.
    """
    embeds = model.backbone.embed(input_ids)
    if speech_ids is None or input_ids.shape[1] <= 1:
        return Merged(embeds, embeds, labels, None)
    tokens, valid = _whole_groups(ids, speech_ids, speech_attention_mask)
    groups = tokens.unflatten(1, (-1, ids.group_size))  # (A, G, k)
    there = torch.arange(groups.shape[1], device=tokens.device) < -(-valid.sum(1) // ids.group_size)[:, None]
    where = input_ids == ids.audio
    if int(where.sum()) != int(there.sum()):
        raise ValueError(
            f"input_ids hold {int(where.sum())} audio positions but speech_ids need {int(there.sum())} "
            f"(a position per {ids.group_size} speech tokens, last group filled up); make both with the same processor"
        )
    audio = _speech(model, ids, groups, input_features, feature_attention_mask, feature_exist_mask)
    audio = audio.to(embeds.dtype)
    text_embeds, transcript = embeds, None
    if text_ids is not None and text_ids.numel():
        transcript, words = _transcripts(model, ids, groups.shape[1], valid, text_ids, text_attention_mask)
        audio = (words + audio) / 2  # also where there is no transcript, as the released code does
        text_embeds = embeds.masked_scatter(where[..., None], words[there])
    embeds = embeds.masked_scatter(where[..., None], audio[there])
    if labels is None:
        return Merged(embeds, text_embeds, None, None)
    labels = labels.to(input_ids.device)
    return Merged(
        embeds,
        text_embeds,
        _text_labels(ids, labels, where, None if transcript is None else transcript[there]),
        _speech_labels(ids, labels, where, groups.masked_fill(~valid.view_as(groups), IGNORE)[there]),
    )


def _whole_groups(ids: StreamIds, speech_ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Speech tokens ``(A, T)`` of whole groups, and where they are real ``(A, T)``."""
    valid = torch.ones_like(speech_ids, dtype=torch.bool) if mask is None else mask.to(speech_ids.device) == 1
    extra = -speech_ids.shape[1] % ids.group_size
    return F.pad(speech_ids, (0, extra), value=ids.speech_pad), F.pad(valid, (0, extra), value=False)


def _speech(
    model: SpeechLM, ids: StreamIds, groups: Tensor, mel: Tensor | None, mask: Tensor | None, exist: Tensor | None
) -> Tensor:
    """Positions ``(A, G, D)`` of groups of speech tokens ``(A, G, k)`` and of waveforms."""
    adapter, encoder, grouping = model.code_adapter, model.encoder, model.feature_adapter
    assert isinstance(adapter, FunAudioCodeGrouping)
    assert isinstance(encoder, FunAudioEncoder)
    assert grouping is not None
    if mel is None:
        return adapter.embed_rows(groups)
    if mask is None:
        raise ValueError("input_features come without feature_attention_mask, which says how long each audio is")
    heard = torch.ones(len(groups), dtype=torch.bool) if exist is None else exist.cpu().bool()
    if int(heard.sum()) != len(mel):
        raise ValueError(
            f"feature_exist_mask names {int(heard.sum())} audios with features, input_features has {len(mel)}"
        )
    lengths = mask.sum(1)
    features = encoder.forward_mel(_left_aligned(mel, mask), lengths.cpu()).features
    longest = groups.shape[1] * ids.group_size
    features = F.pad(features[:, :longest], (0, 0, 0, max(0, longest - features.shape[1])))
    found = grouping(features, torch.full((len(features),), longest, device=features.device)).features
    which = heard.nonzero().squeeze(1).to(groups.device)
    if ids.adds:
        return adapter.embed_rows(groups).index_add(0, which, found.to(adapter.table.dtype))
    others = (~heard).nonzero().squeeze(1).to(groups.device)  # what is replaced is not computed
    positions = found.new_zeros(len(groups), groups.shape[1], found.shape[-1]).index_copy(0, which, found)
    spoken: Tensor = positions.index_copy(0, others, adapter.embed_rows(groups[others]).to(found.dtype))
    return spoken


def _left_aligned(mel: Tensor, mask: Tensor) -> Tensor:
    """Features ``(E, M, F)`` with the valid frames of each row first, in their order."""
    keep = mask.bool()
    if bool((keep[:, 1:] <= keep[:, :-1]).all()):
        return mel  # they are: padding stands behind
    order = (~keep).long().argsort(dim=1, stable=True)
    return mel.gather(2, order[:, None].expand_as(mel))


def _transcripts(
    model: SpeechLM, ids: StreamIds, groups: int, valid: Tensor, text_ids: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Text labels ``(A, G)`` and embeddings ``(A, G, D)`` of transcripts, cut or filled to the speech's positions."""
    text = F.pad(text_ids[:, :groups], (0, max(0, groups - text_ids.shape[1])), value=ids.text_fill)
    for end in ids.text_end:
        text = text.masked_fill(text == end, ids.silence)
    spoken = (
        torch.ones(len(text), dtype=torch.bool, device=text.device) if mask is None else mask.to(text.device).bool()
    )
    words = model.backbone.embed(text).masked_fill(~spoken[:, None, None], 0)
    labels = text.masked_fill(~valid[:, :: ids.group_size] | ~spoken[:, None], IGNORE)
    return labels, words


def _text_labels(ids: StreamIds, labels: Tensor, where: Tensor, transcript: Tensor | None) -> Tensor:
    """Labels ``(B, S)`` with transcripts at the positions of learned speech."""
    found = labels.masked_fill(labels == ids.audio, IGNORE)
    if transcript is not None:
        found = found.masked_scatter(where, transcript)
    return found.masked_fill(labels == IGNORE, IGNORE)


def _speech_labels(ids: StreamIds, labels: Tensor, where: Tensor, groups: Tensor) -> Tensor:
    """Labels ``(B, S * k)``: groups at the positions of learned speech, a group of eos where speech ends."""
    found = labels.new_full((*labels.shape, ids.group_size), IGNORE).masked_scatter(where[..., None], groups)
    found = found.masked_fill((labels == IGNORE)[..., None], IGNORE)
    return found.masked_fill((labels == ids.audio_eos)[..., None], ids.speech_eos).flatten(1)
