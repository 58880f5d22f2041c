"""Fun-Audio-Chat as its own class would be used, made of our parts.

Legend: B rows, S text positions, k speech tokens per group, D width, C rows of the code table, V text vocabulary,
N positions of all rows without padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from fac_lightning.heads import FunAudioHead
from fac_lightning.hf_packed import packed_forward
from fac_lightning.interop.fun_audio_chat.checkpoint import Coverage, Layout
from fac_lightning.interop.fun_audio_chat.inputs import Merged, StreamIds, merge
from fac_lightning.interop.fun_audio_chat.processor import FunAudioChatProcessor
from fac_lightning.models import SpeechLM
from fac_lightning.types import IGNORE

__all__ = ["FunAudioChat", "FunAudioChatOutput"]


@dataclass
class FunAudioChatOutput(ModelOutput):
    """What the released model returns. Logits at padding are zero."""

    loss: Tensor | None = None  # ()
    aux_loss: Tensor | None = None  # (), of a mixture of experts
    text_loss: Tensor | None = None  # (), the mixture's auxiliary loss included; 0 where no text is learned
    speech_loss: Tensor | None = None  # (), None without speech; 0 where no speech is learned
    text_logits: Tensor | None = None  # (B, S, V)
    speech_logits: Tensor | None = None  # (B, S * k, C)
    last_hidden_state: Tensor | None = None  # (B, S, D), normed

    @property
    def logits(self) -> Tensor | None:
        """Text logits by the name that transformers uses."""
        return self.text_logits


class FunAudioChat(nn.Module):
    """The released model, its processor and its files in one object.

    ``forward`` and ``generate`` take the keyword inputs of the released class. They leave the caller's tensors as they
    are and keep nothing on the module, so many threads may share one.

    Args:
        model: Made of the released parts.
        config: Content of ``config.json``; fields that nothing here knows are kept.
        processor: Prompts and audios -> inputs.
        generation_config: transformers ``GenerationConfig``, the checkpoint's defaults.
        coverage: What became of every tensor.
        layout: Files of the weights.
        files: Small files beside the weights: path in the folder -> content.
    """

    def __init__(
        self,
        model: SpeechLM,
        config: Mapping[str, Any],
        processor: FunAudioChatProcessor | None = None,
        generation_config: Any = None,
        coverage: Coverage | None = None,
        layout: Layout | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.processor = model, dict(config), processor
        self.generation_config, self.coverage = generation_config, coverage
        self.layout, self.files = layout or Layout(), dict(files or {})
        self.ids = StreamIds.of(config)

    @property
    def text_tokenizer(self) -> Any:
        """Transformers tokenizer of text."""
        return self._processor().text_tokenizer

    @property
    def speech_tokenizer(self) -> Any:
        """Transformers tokenizer of written speech tokens; :class:`fac_lightning.tokenizers.S3Tokenizer` hears them."""
        return self._processor().speech_tokenizer

    @property
    def feature_extractor(self) -> Any:
        """Transformers feature extractor."""
        return self._processor().feature_extractor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.backbone.output_weight.device

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        speech_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        speech_attention_mask: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        feature_exist_mask: Tensor | None = None,
        text_attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        text_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> FunAudioChatOutput:
        """Logits and losses of a padded batch.

        Args:
            input_ids: ``(B, S)``, with ``<|AUDIO|>`` at every position of an audio.
            input_features: Log-mel of the audios that have a waveform ``(E, M, F)``.
            speech_ids: Speech tokens of all audios ``(A, T)``, rows of the code table.
            text_ids: Transcripts ``(A, Lt)``.
            attention_mask: ``(B, S)``: 0 for padding; numbers above 1 tell dialogues apart that share a row.
            speech_attention_mask: ``(A, T)``.
            feature_attention_mask: ``(E, F)``.
            feature_exist_mask: ``(A,)`` bool.
            text_attention_mask: ``(A,)`` bool, audios that have a transcript.
            position_ids: ``(B, S)``; counted in every row when None.
            inputs_embeds: ``(B, S, D)`` in place of ``input_ids``; nothing is merged then.
            text_embeds: ``(B, S, D)``, what the head is told beside ``inputs_embeds``.
            labels: ``(B, S)`` or -100, aligned with ``input_ids``.
            past_key_values: Must be None: caches belong to ``generate``.
            use_cache: Taken for the released class's sake, without effect.
            output_attentions: Must be false: no attention weights are ever kept.
            output_hidden_states: The same; the last hidden state is always given.
            return_dict: Taken for the released class's sake; outputs have names and can be unpacked.

        Raises:
            ValueError: Inputs do not agree, or something is asked for that is never kept.
        """
        if past_key_values is not None or output_attentions or output_hidden_states:
            raise ValueError(
                "forward takes whole rows and keeps neither caches nor attention weights nor the layers between; "
                "leave past_key_values, output_attentions and output_hidden_states out (generate has its own caches)"
            )
        if inputs_embeds is not None:
            text = text_embeds if text_embeds is not None else _embedded(self.model, input_ids, inputs_embeds)
            merged = Merged(inputs_embeds, text, labels, None)
        elif input_ids is None:
            raise ValueError("give input_ids or inputs_embeds")
        else:
            merged = merge(
                self.model,
                self.ids,
                input_ids,
                labels,
                speech_ids,
                speech_attention_mask,
                input_features,
                feature_attention_mask,
                feature_exist_mask,
                text_ids,
                text_attention_mask,
            )
        rows = _Rows.of(merged.embeds, attention_mask, position_ids)
        backbone = self.model.backbone
        router = bool(self.config["text_config"].get("output_router_logits"))
        options: dict[str, Any] = {"output_router_logits": True} if router else {}
        out = packed_forward(backbone.model, rows.pack(merged.embeds), rows.positions, rows.lengths, **options)
        hidden = out.last_hidden_state[0]  # (N, D)
        text_logits = rows.unpack(backbone.logits(hidden))
        aux_loss = self._aux_loss(out.router_logits) if router else None
        text_loss = speech_loss = loss = None
        if merged.text_labels is not None:
            text_loss = _mean_loss(text_logits[:, :-1], merged.text_labels[:, 1:])
            if aux_loss is not None:
                text_loss = text_loss + self.config["text_config"]["router_aux_loss_coef"] * aux_loss
            loss = text_loss
        speech_logits = None
        if speech_ids is not None and self.model.head is not None:
            speech_logits = self._speech_logits(rows, hidden, merged)
            if merged.speech_labels is not None:
                k = self.ids.group_size
                speech_loss = _mean_loss(speech_logits[:, :-k], merged.speech_labels[:, k:])
                loss = speech_loss if loss is None else loss + speech_loss
        return FunAudioChatOutput(
            loss, aux_loss, text_loss, speech_loss, text_logits, speech_logits, rows.unpack(hidden)
        )

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, sp_gen_kwargs: Mapping[str, Any] | None = None, **generate_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Answer: ids ``(B, S + new)`` with the prompt, and speech tokens ``(B, groups * k)``.

        Args:
            input_ids: ``(B, S)``, left padded.
            sp_gen_kwargs: ``text_greedy``, ``only_crq_sampling``, ``disable_speech``, ``force_text_abos``; see
                :class:`SpeechPolicy`.
            generate_kwargs: Inputs of ``forward`` (but labels), and of transformers' ``generate``: ``max_new_tokens``,
                ``do_sample``, ``temperature``, ``top_k``, ``top_p``, ``repetition_penalty``, ``bad_words_ids``,
                ``eos_token_id``, ``pad_token_id``, ``seed``, ``streamer`` (its ``put`` gets the prompt ``(B, L)``, then
                at each position tokens ``(B,)`` and, while anyone speaks, groups of codes ``(B, k)``).

        Raises:
            ValueError: An argument is not known, or the batch is padded on the right.
        """
        from fac_lightning.interop.fun_audio_chat.generation import generate

        return generate(self, input_ids, dict(sp_gen_kwargs or {}), generate_kwargs)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint; see :func:`save`."""
        from fac_lightning.interop.fun_audio_chat.files import save

        save(self, folder)

    def _speech_logits(self, rows: _Rows, hidden: Tensor, merged: Merged) -> Tensor:
        """Logits of all places of all positions ``(B, S * k, C)``."""
        head, k = self.model.head, self.ids.group_size
        assert isinstance(head, FunAudioHead)
        condition = head.condition(hidden, rows.pack(merged.text_embeds))
        if merged.speech_labels is None:  # nothing was said before: the condition alone
            states = head.states(condition, None, rows.positions, rows.lengths)
        else:
            labels = merged.speech_labels.masked_fill(merged.speech_labels == IGNORE, head.pad_row)
            previous = F.pad(labels[:, k - 1 :], (0, k - 1), value=head.pad_row).unflatten(1, (-1, k))
            states = head.states(condition, rows.pack(previous), rows.positions, rows.lengths)
        return rows.unpack(F.linear(states, head.table)).flatten(1, 2)

    def _aux_loss(self, router_logits: tuple[Tensor, ...]) -> Tensor:
        from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

        text = self.config["text_config"]
        # the line has no padding, so no mask is needed
        loss: Tensor = load_balancing_loss_func(router_logits, text["num_experts"], text["num_experts_per_tok"])
        return loss

    def _processor(self) -> FunAudioChatProcessor:
        if self.processor is None:
            raise ValueError(
                "this checkpoint came without tokenizers, so it has no processor; give one to FunAudioChat"
            )
        return self.processor


@dataclass(frozen=True)
class _Rows:
    """A padded batch as a line without padding, and back."""

    where: Tensor  # (N,) int64, places of the padded batch laid flat
    positions: Tensor  # (N,) int64
    lengths: Tensor  # (R,) int64 on CPU
    shape: tuple[int, int]  # B, S

    @classmethod
    def of(cls, embeds: Tensor, mask: Tensor | None, position_ids: Tensor | None) -> _Rows:
        batch, length = embeds.shape[:2]
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.long, device=embeds.device)
        if mask.dim() != 2:
            raise ValueError(
                f"attention_mask must be (B, S), got {tuple(mask.shape)}; rows are kept apart by its numbers"
            )
        mask = mask.to(embeds.device)
        # a dialogue goes on while row and number stay the same
        segment = (torch.arange(batch, device=mask.device)[:, None] * (int(mask.max()) + 1) + mask).flatten()
        where = mask.flatten().nonzero().squeeze(1)
        lengths = torch.unique_consecutive(segment[where], return_counts=True)[1].cpu()
        if position_ids is None:
            starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
            positions = (torch.arange(len(where)) - starts).to(embeds.device)
        else:
            positions = position_ids.to(embeds.device).expand(batch, -1).flatten()[where]
        return cls(where, positions, lengths, (batch, length))

    def pack(self, values: Tensor) -> Tensor:
        """``(B, S, ...)`` -> ``(N, ...)``."""
        return values.flatten(0, 1).index_select(0, self.where)

    def unpack(self, values: Tensor) -> Tensor:
        """``(N, ...)`` -> ``(B, S, ...)``, zero at padding."""
        flat = values.new_zeros(self.shape[0] * self.shape[1], *values.shape[1:])
        rows: Tensor = flat.index_copy(0, self.where, values).unflatten(0, self.shape)
        return rows


def _embedded(model: SpeechLM, input_ids: Tensor | None, inputs_embeds: Tensor) -> Tensor:
    return torch.zeros_like(inputs_embeds) if input_ids is None else model.backbone.embed(input_ids)


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of labelled places in float32; 0 where nothing is labelled."""
    kept = labels != IGNORE
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum") / kept.sum().clamp_min(1)
