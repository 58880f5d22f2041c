"""What stands before the released Fun-Audio-Chat: words and waveforms become its tensors.

Legend: B texts, L text tokens, A audios, E audios with a waveform, T speech tokens (padded to whole groups),
M mel bins, F mel frames, S samples.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fac_lightning.interop.fun_audio_chat.processor_audio import list_audios, read_audio
from fac_lightning.interop.fun_audio_chat.processor_files import (
    TOKEN_NAMES,
    local_folder,
    read_processor,
    write_processor,
)
from fac_lightning.prompts import AUDIO, AUDIO_BOS, AUDIO_EOS, AUDIO_PAD
from fac_lightning.weights import CheckpointError

if TYPE_CHECKING:
    from transformers import BatchFeature

__all__ = ["DEFAULT_CHAT_TEMPLATE", "FunAudioChatProcessor"]

log = logging.getLogger(__name__)

TOKENS_PER_SECOND = 25
SAMPLE_RATE = 16000  # Hz

#: ChatML; audios in a list of contents are numbered from 1
DEFAULT_CHAT_TEMPLATE = """\
{%- set audios = namespace(count=0) -%}
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for content in message['content'] -%}
{%- if 'audio' in content or 'audio_url' in content or content['type'] == 'audio' -%}
{%- set audios.count = audios.count + 1 -%}
{{- 'Audio ' ~ audios.count ~ ': <|audio_bos|><|AUDIO|><|audio_eos|>\\n' -}}
{%- elif 'text' in content -%}
{{- content['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


class FunAudioChatProcessor:
    """Prompts and audios become the keyword inputs of Fun-Audio-Chat, as its own processor makes them.

    Args:
        text_tokenizer: transformers tokenizer that knows the audio tokens as single tokens.
        speech_tokenizer: transformers tokenizer of written speech tokens, such as ``[AU0012]``.
        feature_extractor: transformers ``WhisperFeatureExtractor``; its ``chunk_length`` bounds what is heard.
        chat_template: Jinja; ``DEFAULT_CHAT_TEMPLATE`` when None.
        group_size: Speech tokens per placeholder.
        sample_rate: Hz of the waveforms that the model hears.
        audio_token: Placeholder of an audio in a text.
        audio_bos_token: Opens speech.
        audio_eos_token: Closes speech.
        audio_pad_token: Speech token that only holds a place.

    Example:
        >>> processor = FunAudioChatProcessor.from_pretrained("Fun-Audio-Chat-8B")  # doctest: +SKIP
        >>> prompt = processor.apply_chat_template([{"role": "user", "content": AUDIO_TEMPLATE}])  # doctest: +SKIP
        >>> inputs = processor(text=prompt, audio=[waveform])  # doctest: +SKIP
    """

    def __init__(
        self,
        text_tokenizer: Any,
        speech_tokenizer: Any,
        feature_extractor: Any,
        chat_template: str | None = None,
        group_size: int = 5,
        sample_rate: int = SAMPLE_RATE,
        audio_token: str = AUDIO,
        audio_bos_token: str = AUDIO_BOS,
        audio_eos_token: str = AUDIO_EOS,
        audio_pad_token: str = AUDIO_PAD,
    ) -> None:
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        if feature_extractor.sampling_rate != sample_rate:
            raise ValueError(
                f"sample_rate is {sample_rate} Hz, the feature extractor hears {feature_extractor.sampling_rate} Hz; "
                "give both the same"
            )
        self.text_tokenizer, self.speech_tokenizer = text_tokenizer, speech_tokenizer
        self.feature_extractor, self.group_size, self.sample_rate = feature_extractor, group_size, sample_rate
        self.chat_template = DEFAULT_CHAT_TEMPLATE if chat_template is None else chat_template
        self.audio_token, self.audio_pad_token = audio_token, audio_pad_token
        self.audio_bos_token, self.audio_eos_token = audio_bos_token, audio_eos_token
        for tokenizer, token, name in (
            (text_tokenizer, audio_token, "text"),
            (text_tokenizer, audio_bos_token, "text"),
            (text_tokenizer, audio_eos_token, "text"),
            (speech_tokenizer, audio_pad_token, "speech"),
        ):
            ids = tokenizer.encode(token, add_special_tokens=False)
            if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
                raise ValueError(f"the {name} tokenizer does not know {token!r} as one token; it is of another model")

    @property
    def tokenizer(self) -> Any:
        """The text tokenizer, by the name that the released processor gives it."""
        return self.text_tokenizer

    @classmethod
    def from_pretrained(cls, name: str | Path) -> FunAudioChatProcessor:
        """The processor of a checkpoint. No code of the checkpoint is run.

        Args:
            name: Folder, or hub id; of the latter only the small files are fetched.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        folder = local_folder(name)
        try:
            return cls(**read_processor(folder))
        except CheckpointError:
            raise
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def save_pretrained(self, folder: str | Path) -> None:
        """Write what ``from_pretrained`` and the released processor read. The files of the model are left alone."""
        settings = {name: getattr(self, name) for name in TOKEN_NAMES}
        settings["audio_group_size"] = self.group_size
        if self.sample_rate != SAMPLE_RATE:  # the released file does not say it
            settings["audio_sampling_rate"] = self.sample_rate
        write_processor(
            Path(folder),
            self.text_tokenizer,
            self.speech_tokenizer,
            self.feature_extractor,
            self.chat_template,
            {**settings, "processor_class": type(self).__name__},
        )

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        padding: bool | str = False,
    ) -> BatchFeature:
        """Inputs of the model.

        Args:
            text: Prompts with one placeholder ``<|AUDIO|>`` per audio. Where neither ``<|audio_bos|>`` stands before
                it nor ``<|audio_eos|>`` behind it, both are put there.
            audio: Audios in the order of their placeholders, over all texts: mono waveforms ``(S,)``, or
                ``{"path": ..., "token": ...}`` as a mapping or as JSON. Without "token" it is as many
                ``<|audio_pad|>`` as the waveform has tokens; with an empty "path" there are tokens alone.
            sampling_rate: Hz of the waveforms given; ``sample_rate`` when None. Files know their own.
            return_tensors: "pt" or "np".
            padding: As transformers takes it; texts of several lengths need True. The text tokenizer's
                ``padding_side`` says where.

        Returns:
            ``input_ids`` and ``attention_mask`` ``(B, L)``. With audio also ``speech_ids`` and
            ``speech_attention_mask`` ``(A, T)``, ``feature_exist_mask`` ``(A,)`` bool and, where there is a waveform,
            ``input_features`` ``(E, M, F)`` and ``feature_attention_mask`` ``(E, F)``.

        Raises:
            ValueError: Placeholders and audios are not as many, or an audio cannot be used.
        """
        from transformers import BatchFeature

        if return_tensors not in ("pt", "np"):
            raise ValueError(f"return_tensors is {return_tensors!r}; choose 'pt' or 'np'")
        texts = [text] if isinstance(text, str) else list(text)
        given = [] if audio is None else list_audios(audio)
        placeholders = sum(one.count(self.audio_token) for one in texts)
        if placeholders != len(given):
            raise ValueError(
                f"{len(texts)} text(s) with {placeholders} {self.audio_token} in all, but {len(given)} audio(s): give "
                "one audio per placeholder, in their order"
            )
        found: dict[str, np.ndarray] = {}
        if given:
            audios = [self._audio(one, i, sampling_rate) for i, one in enumerate(given)]
            found = self._speech([tokens for _, tokens in audios])
            found |= self._features([waveform for waveform, _ in audios if waveform is not None])
            found["feature_exist_mask"] = np.array([waveform is not None for waveform, _ in audios])
            groups = -(-found["speech_attention_mask"].sum(1) // self.group_size)  # (A,)
            texts = self._expand(texts, groups.tolist())
        tokens = self.text_tokenizer(texts, padding=padding, return_token_type_ids=False)
        lengths = {len(row) for row in tokens["input_ids"]}
        if len(lengths) > 1:
            raise ValueError(f"texts have {min(lengths)} to {max(lengths)} tokens; give padding=True for one tensor")
        found = {key: np.asarray(tokens[key]) for key in ("input_ids", "attention_mask")} | found
        return BatchFeature({key: torch.from_numpy(x) for key, x in found.items()} if return_tensors == "pt" else found)

    def speech_tokens(self, num_samples: int) -> int:
        """Speech tokens that ``num_samples`` samples at ``sample_rate`` Hz count as.

        The released processor divides floats and cuts, which loses a token at some exact multiples: 18560 samples at
        16 kHz are 29 tokens of 640, and count as 28. The checkpoints know this count, so it stays.
        """
        return int(num_samples / self.sample_rate * TOKENS_PER_SECOND)

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, tokenize: bool = False
    ) -> str | list[int]:
        """Messages ``{"role": ..., "content": ...}`` as one text, or as its token ids.

        Args:
            messages: The conversation. A content is a text, in which ``prompts.AUDIO_TEMPLATE`` stands for an audio,
                or a list of contents. The checkpoints were trained with texts.
            add_generation_prompt: Open the assistant's turn at the end.
            tokenize: Give token ids; placeholders are not expanded in them.
        """
        text: str = self.text_tokenizer.apply_chat_template(
            list(messages),
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
        return list(self.text_tokenizer.encode(text, add_special_tokens=False)) if tokenize else text

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        """Text of one row of token ids ``(L,)``."""
        return str(self.text_tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def batch_decode(self, token_ids: Any, skip_special_tokens: bool = False) -> list[str]:
        """Texts of rows of token ids ``(B, L)``."""
        return [self.decode(row, skip_special_tokens) for row in token_ids]

    def _audio(self, given: Any, number: int, sampling_rate: int | None) -> tuple[np.ndarray | None, str]:
        """Waveform ``(S,)`` of one of the audios of a call, None where there is none, and its written tokens."""
        where = f"audio {number}"
        waveform, tokens = read_audio(given, self.sample_rate, sampling_rate, where)
        if waveform is not None:
            self._tell_truncation(len(waveform), where)
        if tokens is None:
            assert waveform is not None
            tokens = self.audio_pad_token * self.speech_tokens(len(waveform))
        return waveform, tokens

    def _tell_truncation(self, num_samples: int, where: str) -> None:
        limit = int(self.feature_extractor.n_samples)
        if num_samples > limit:
            seconds, kept = num_samples / self.sample_rate, limit / self.sample_rate
            log.warning(
                "%s lasts %.2f s, but chunk_length of the feature extractor is %g s: the last %.2f s are not heard, "
                "though they count as speech tokens. Cut the audio, or load the processor with a longer chunk_length",
                where,
                seconds,
                kept,
                seconds - kept,
            )

    def _speech(self, tokens: list[str]) -> dict[str, np.ndarray]:
        """Ids ``(A, T)`` of written speech tokens, filled up to whole groups."""
        out = self.speech_tokenizer(
            tokens, padding=True, pad_to_multiple_of=self.group_size, return_token_type_ids=False, return_tensors="np"
        )
        ids, mask = out["input_ids"].astype(np.int64), out["attention_mask"].astype(np.int64)
        unknown = self.speech_tokenizer.unk_token
        if unknown is not None:
            strange = ((ids == self.speech_tokenizer.unk_token_id) & (mask == 1)).sum(1)
            for i, (count, written) in enumerate(zip(strange.tolist(), tokens, strict=True)):
                if count != written.count(unknown):
                    raise ValueError(
                        f"audio {i}: {count - written.count(unknown)} token(s) of {written[:80]!r} are not in the "
                        f"speech tokenizer; write them like {self.speech_tokenizer.convert_ids_to_tokens(0)}, without "
                        "spaces"
                    )
        return {"speech_ids": ids, "speech_attention_mask": mask}

    def _features(self, waveforms: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Mel features ``(E, M, F)`` and their mask, ``chunk_length`` seconds each; nothing without waveforms."""
        if not waveforms:
            return {}
        out = self.feature_extractor(
            waveforms,
            sampling_rate=self.sample_rate,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="np",
        )
        return {"input_features": out["input_features"], "feature_attention_mask": out["attention_mask"]}

    def _expand(self, texts: list[str], groups: list[int]) -> list[str]:
        """Texts with a placeholder per group of speech tokens."""
        counts = iter(groups)

        def expanded(match: re.Match[str]) -> str:
            tokens = self.audio_token * next(counts)
            opened = match.string.endswith(self.audio_bos_token, 0, match.start())
            closed = match.string.startswith(self.audio_eos_token, match.end())
            return tokens if opened or closed else self.audio_bos_token + tokens + self.audio_eos_token

        return [re.sub(re.escape(self.audio_token), expanded, text) for text in texts]
