"""The model: slots joined into one network that reads and says text and speech.

Legend: N positions of a packed line, D width of the backbone, C input groups of codes, H groups to say, A clips,
F positions of user speech, k frames per group, Q codebooks, M labelled text positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor, nn

from fac_lightning.adapters.base import CodeAdapter, FeatureAdapter, Fusion
from fac_lightning.backbones.base import Backbone
from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.heads.base import SpeechHead
from fac_lightning.losses import chunked_logprobs
from fac_lightning.models.agreement import agree_on_codes, agree_on_parts, agree_on_rates
from fac_lightning.models.unheard import EmbeddedLine, without_unheard
from fac_lightning.tokenizers.base import SpeechTokenizer
from fac_lightning.types import IGNORE, HeadOutput, SpeechFeatures, SpeechGeometry, SpeechLMOutput, SpeechTextBatch

__all__ = ["SpeechLM"]


class SpeechLM(nn.Module):
    """A text LLM at a low rate with speech on both sides.

    Text, groups of codes and user features are embedded, fused where they meet, and run through the backbone once.
    Text log-probabilities are computed where a text label is, the speech head runs where a group is said.

    A slot may stay empty when no mode needs it: without ``head`` nothing is said, without ``encoder`` and
    ``feature_adapter`` nothing is heard.

    A part whose training needs a loss of its own (a router's balance, a rate to be kept) has a method
    ``auxiliary_loss() -> Tensor | None``; see ``auxiliary_losses``.

    Args:
        backbone: The shared text LLM.
        head: Hidden states -> groups of codes.
        encoder: User waveforms -> features.
        feature_adapter: Features -> positions; goes with ``encoder``.
        code_adapter: Groups of codes -> positions, the model's own speech fed back.
        fusion: Joins streams that meet at a position; goes with ``code_adapter``.
        rate_tolerance: How far the positions per second of user speech and of the model's own may lie apart, as a part
            of the greater; see ``check_tokenizer``. Between 0 and 1, which allows all.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: SpeechHead | None = None,
        encoder: SpeechEncoder | None = None,
        feature_adapter: FeatureAdapter | None = None,
        code_adapter: CodeAdapter | None = None,
        fusion: Fusion | None = None,
        rate_tolerance: float = 0.1,
    ) -> None:
        super().__init__()
        if not 0 <= rate_tolerance <= 1:
            raise ValueError(f"rate_tolerance must lie between 0 and 1, got {rate_tolerance}")
        self.rate_tolerance = rate_tolerance
        agree_on_parts(backbone, head, encoder, feature_adapter, code_adapter, fusion)
        self.backbone, self.head, self.encoder = backbone, head, encoder
        self.feature_adapter, self.code_adapter, self.fusion = feature_adapter, code_adapter, fusion
        self.tie()

    def tie(self) -> None:
        """Let a tied head share the code adapter's table, where that has one; again after tensors were exchanged."""
        table = None if self.code_adapter is None else self.code_adapter.code_table
        if self.head is not None and self.head.tied and table is not None:
            self.head.tie(table)

    def check_tokenizer(self, tokenizer: SpeechTokenizer) -> None:
        """Refuse a tokenizer that does not go with the parts.

        Its codes must be those of the head. User speech and the model's own may have two rates where they take turns,
        but mostly nobody meant that, and full duplex needs one clock; so rates that lie apart are an error unless
        ``rate_tolerance`` allows them. Rates that no whole groups make equal (86.1 / 17 and 50 / 10 positions a second)
        are within the default. Nothing is checked where the model says no codes.

        Raises:
            ValueError: Names both numbers and the sizes that fit.
        """
        codes, slot = (self.head, "head") if self.head is not None else (self.code_adapter, "code_adapter")
        if codes is None:
            return
        agree_on_codes(tokenizer, codes, slot)
        if self.encoder is not None and self.feature_adapter is not None:
            agree_on_rates(tokenizer, codes.group_size, self.encoder, self.feature_adapter, self.rate_tolerance)

    @property
    def geometry(self) -> SpeechGeometry:
        """The numbers that layout needs.

        Without an encoder ``samples_per_position`` is 0: no waveform fits. Without head and code adapter
        ``codebook_size`` is 0: no code fits.
        """
        codes = self.head if self.head is not None else self.code_adapter
        encoder, grouping = self.encoder, self.feature_adapter
        return SpeechGeometry(
            sample_rate=encoder.sample_rate if encoder is not None else 16000,
            samples_per_position=0 if encoder is None or grouping is None else encoder.hop_length * grouping.group_size,
            group_size=1 if codes is None else codes.group_size,
            num_codebooks=1 if codes is None else codes.num_codebooks,
            codebook_size=0 if codes is None else codes.codebook_size,
            vocab_size=self.backbone.vocab_size,
            user_codes=self.fusion is not None and self.fusion.reads_user_codes,
        )

    def forward(self, batch: SpeechTextBatch) -> SpeechLMOutput:
        """Log-probabilities of all labels of a packed line; an empty stream gives empty tensors and sums of 0.

        Raises:
            ValueError: Rows continue other rows, but backbone or head only know rows that stand alone.
        """
        parents = () if batch.parents is None else (self._checked(batch.parents),)
        read = self.read(batch)
        line = read.batch
        hidden = self.backbone(read.embeds, line.position_ids, line.lengths, *parents)
        positions = (line.text_labels != IGNORE).nonzero().squeeze(1)
        logprobs, correct = chunked_logprobs(
            hidden.index_select(0, positions),
            self.backbone.output_weight,
            line.text_labels[positions],
            softcap=self.backbone.logit_softcap,
        )
        speech = self._say(line, hidden)
        if read.kept is not None:
            positions = read.kept[positions]
        return SpeechLMOutput(logprobs, correct, positions, speech, self.auxiliary_losses())

    @property
    def auxiliary_parts(self) -> dict[str, Callable[[], Tensor | None]]:
        """Slots whose part has a method ``auxiliary_loss``, and the method."""
        methods = {name: getattr(part, "auxiliary_loss", None) for name, part in self.named_children()}
        return {name: method for name, method in methods.items() if callable(method)}

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Slot -> loss ``()`` of the last forward, of parts that have one.

        ``auxiliary_loss`` gives a mean over the line, already scaled to stand beside the mean loss per token; None when
        the last forward made none. It is handed out once and then forgotten, so that no graph outlives its step:
        ``forward`` puts these losses into its output, and who calls ``forward`` finds them there.
        """
        losses = {name: method() for name, method in self.auxiliary_parts.items()}
        return {name: loss for name, loss in losses.items() if loss is not None}

    def embed(self, batch: SpeechTextBatch) -> Tensor:
        """Fused embeddings ``(N, D)`` of a packed line; fewer than N where the adapter left positions out (``read``).

        Raises:
            ValueError: As ``read``.
        """
        return self.read(batch).embeds

    def read(self, batch: SpeechTextBatch) -> EmbeddedLine:
        """Fused embeddings of a packed line, without the positions at which nothing was heard.

        Raises:
            ValueError: The batch holds a stream whose slot is empty, or speech features and positions do not agree.
        """
        heard, kept = None, None
        if self.feature_adapter is not None or batch.feature_positions.numel():
            if batch.heard is None:
                heard, came_out = self._listen(batch.audio.audio, batch.audio.lengths)
            else:
                heard, came_out = self._adapt(self._given(batch.heard))
            self._fit(heard, batch.feature_positions)
            if came_out is not None:
                heard = heard[came_out]
                batch, kept = without_unheard(batch, came_out)
        text = self.backbone.embed(batch.text_ids.masked_fill(~batch.text_mask, 0))
        text = text.masked_fill(~batch.text_mask[:, None], 0)
        streams, present = [text], [batch.text_mask]
        if self.code_adapter is not None:
            # also with no group: every parameter then has a gradient, as distributed training wants
            self._place(self.code_adapter(batch.codes), batch.code_positions, streams, present)
        elif batch.codes.shape[0]:
            raise ValueError(
                f"the batch holds {batch.codes.shape[0]} groups of codes but the model has no code_adapter; "
                "name one in the recipe, or take modes without speech output"
            )
        if heard is not None:
            self._place(heard, batch.feature_positions, streams, present)
        stacked, there = torch.stack(streams), torch.stack(present)  # (streams, N, D), (streams, N)
        fused: Tensor = stacked.sum(0) if self.fusion is None else self.fusion(stacked, there)
        return EmbeddedLine(fused, batch, kept)

    def hear(self, audio: Tensor, lengths: Tensor) -> Tensor:
        """Positions ``(F, D)`` of waveforms ``(A, S)`` at ``geometry.sample_rate``, clip after clip, no padding.

        All clips go through the encoder in one call. With no clip the encoder does not run. Positions at which an
        adapter of a variable rate gives nothing are zero.
        """
        return self._listen(audio, lengths)[0]

    def _listen(self, audio: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """What ``hear`` gives, and at which of it something came out ``(F,)``; None at all."""
        if self.encoder is None or self.feature_adapter is None:
            raise ValueError(
                "the batch holds user speech but the model has no encoder and feature_adapter; "
                "name them in the recipe, or take modes with text input (T2M, T2T, TTS)"
            )
        if audio.shape[0] == 0:
            empty = self.backbone.output_weight.new_zeros(0, 0, self.feature_adapter.in_dim)
            positions = self.feature_adapter(empty, lengths)
            return positions.features.flatten(0, 1) + self._untouched_encoder(), None
        return self._adapt(self.encoder(audio, lengths))

    def _given(self, heard: SpeechFeatures) -> SpeechFeatures:
        """Stored features in the type that the encoder would give them in."""
        if self.encoder is None or self.feature_adapter is None:
            raise ValueError("the batch holds features of user speech but the model has no encoder and feature_adapter")
        features, width = heard.features, self.feature_adapter.in_dim
        if features.shape[2] == 0:  # no clip of the line could be read
            features = features.new_zeros(*features.shape[:2], width)
        if features.shape[2] != width:
            raise ValueError(
                f"the batch holds features of width {features.shape[2]}, but the feature_adapter takes {width}; "
                "write the shards anew with the model's encoder (fac data shard --features)"
            )
        if self.encoder.codebook_size is None:
            weights = (weight.dtype for weight in self.encoder.parameters() if weight.is_floating_point())
            features = features.to(next(weights, features.dtype))
        return SpeechFeatures(features, heard.lengths)

    def _adapt(self, features: SpeechFeatures) -> tuple[Tensor, Tensor | None]:
        """Positions ``(F, D)`` of an encoder's frames, and at which of them something came out; None at all."""
        assert self.feature_adapter is not None
        positions = self.feature_adapter(features.features, features.lengths)
        steps = torch.arange(positions.features.shape[1], device=positions.features.device)
        inside = steps < positions.lengths[:, None]
        return positions.features[inside], None if positions.present is None else positions.present[inside]

    def _fit(self, values: Tensor, positions: Tensor) -> None:
        if values.shape[0] != positions.shape[0]:
            raise ValueError(
                f"{values.shape[0]} speech embeddings for {positions.shape[0]} positions; layout and model must have "
                f"the same geometry, the model's is {self.geometry}"
            )

    def _place(self, values: Tensor, positions: Tensor, streams: list[Tensor], present: list[Tensor]) -> None:
        """Add a stream ``(N, D)`` that holds ``values`` at ``positions`` and zero elsewhere."""
        text, _ = streams[0], present[0]
        self._fit(values, positions)
        streams.append(torch.zeros_like(text).index_copy(0, positions, values.to(text.dtype)))
        present.append(torch.zeros_like(present[0]).index_fill(0, positions, True))

    def _checked(self, parents: Tensor) -> Tensor:
        if not self.backbone.takes_parents:
            why = f"{type(self.backbone).__name__} takes no parents"
        elif self.head is not None and self.head.whole_sequence:
            why = f"{type(self.head).__name__} reads whole rows"
        else:
            return parents
        raise ValueError(
            f"rows share their prompt, but {why}; give every row a prompt of its own (share_prompt: false)"
        )

    def _say(self, batch: SpeechTextBatch, hidden: Tensor) -> HeadOutput:
        """The head's output on the groups to say ``(H, k, Q)``."""
        where, labels = batch.speech_positions, batch.speech_labels
        if self.head is None:
            if labels.shape[0]:
                raise ValueError(
                    f"the batch holds {labels.shape[0]} groups to say but the model has no head; "
                    "name one in the recipe, or take modes without speech output (S2T, T2T, ASR)"
                )
            mask = labels != IGNORE
            return HeadOutput(logprobs=hidden.new_zeros(labels.shape).float(), correct=mask, mask=mask)
        if self.head.whole_sequence:
            return self._say_in_rows(batch, hidden)
        text = self._text_of(batch, where) if self.head.needs_text else None
        output: HeadOutput = self.head(hidden.index_select(0, where), labels, batch.reply_lengths, text)
        return output

    def _say_in_rows(self, batch: SpeechTextBatch, hidden: Tensor) -> HeadOutput:
        """The same for a head that reads whole rows: those in which something is said, up to where it ends."""
        assert self.head is not None
        where, rows = batch.speech_positions, batch.lengths.shape[0]
        row_of = torch.arange(rows).repeat_interleave(batch.lengths).to(hidden.device)  # (N,)
        last = where.new_full((rows,), -1).scatter_reduce(0, row_of[where], where, "amax")
        read = torch.arange(hidden.shape[0], device=hidden.device) <= last[row_of]
        kept = read.nonzero().squeeze(1)
        places = (read.cumsum(0) - 1)[where]
        labels = batch.speech_labels.new_full((len(kept), *batch.speech_labels.shape[1:]), IGNORE)
        labels = labels.index_copy(0, places, batch.speech_labels)
        lengths = row_of[kept].bincount(minlength=rows).cpu()
        text = self._text_of(batch, kept) if self.head.needs_text else None
        output: HeadOutput = self.head(hidden.index_select(0, kept), labels, lengths, text)
        return HeadOutput(*(getattr(output, f.name).index_select(0, places) for f in fields(HeadOutput)))

    def _text_of(self, batch: SpeechTextBatch, positions: Tensor) -> Tensor:
        """Detached text embeddings ``(M, D)`` of positions ``(M,)``, zero where there is no text."""
        there = batch.text_mask[positions]
        text = self.backbone.embed(batch.text_ids[positions].masked_fill(~there, 0)).detach()
        return text.masked_fill(~there[:, None], 0)

    def _untouched_encoder(self) -> Tensor:
        """Zero that depends on the encoder's trainable parameters, where processes must agree on gradients."""
        zero = self.backbone.output_weight.new_zeros(())
        if self.encoder is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            for parameter in self.encoder.parameters():
                if parameter.requires_grad:
                    zero = zero + parameter.flatten()[:1].sum() * 0
        return zero
