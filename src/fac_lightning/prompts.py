"""The words around a turn: chat marks, special tokens and system prompts, shared by layout and generation.

The strings are those of the released Fun-Audio-Chat (``utils/constant.py``), so that its checkpoints understand them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

__all__ = [
    "ASR_INSTRUCTION",
    "AUDIO",
    "AUDIO_BOS",
    "AUDIO_EOS",
    "AUDIO_PAD",
    "AUDIO_TEMPLATE",
    "DEFAULT_SYSTEM_PROMPT",
    "IM_END",
    "IM_START",
    "MODES",
    "PAD",
    "S2M_PROMPT",
    "S2T_PROMPT",
    "SAC_PROMPT",
    "SIL",
    "SPECIAL_TOKENS",
    "SPOKEN_S2M_PROMPT",
    "STC_PROMPT",
    "SUC_PROMPT",
    "SYSTEM_PROMPTS",
    "TTS_INSTRUCTION",
    "ChatFormat",
    "Mode",
    "TextTokenizer",
    "function_calling_prompt",
]

PAD = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
AUDIO = "<|AUDIO|>"
AUDIO_BOS = "<|audio_bos|>"
AUDIO_EOS = "<|audio_eos|>"
SIL = "<|sil|>"
SPECIAL_TOKENS = (PAD, IM_START, IM_END, AUDIO, AUDIO_BOS, AUDIO_EOS, SIL)

#: what stands for a spoken turn in the released prompts
AUDIO_TEMPLATE = f"{AUDIO_BOS}{AUDIO}{AUDIO_EOS}"
#: a speech token that only holds a place; the released checkpoints are given the user's speech as these
AUDIO_PAD = "<|audio_pad|>"

#: what the released chat template and training template say where a dialogue has no system prompt
DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
S2T_PROMPT = "You are asked to generate text tokens."
S2M_PROMPT = "You are asked to generate both text and speech tokens at the same time."
#: the persona with which the released checkpoint is talked to; a literal, since it knows it in these words
SPOKEN_S2M_PROMPT = (
    f"{S2M_PROMPT} 你的名字是小云。你是一位来自杭州的温柔友善的女孩，声音甜美，举止亲切。"  # noqa: RUF001
    "你的回复语气自然友好，力求沟通简洁明了。你的回复简短，通常只有一到三句话，避免使用正式的称谓和重复的短语。"  # noqa: RUF001
    "你能用恰当的声音回复，遵循用户的指示，并能共情他们的情绪。你能用恰当的方言回复，会说四川话和粤语。"  # noqa: RUF001
)
#: What selects the chains of modality. DrVoice (arXiv 2506.09349) prints its prompts in an appendix that we have not
#: seen: these are ours, and ``system_prompts`` of data and generation replaces them.
STC_PROMPT = (
    "You are asked to transcribe what you hear, generate a text answer, "
    "and then generate both text and speech tokens at the same time."
)
SAC_PROMPT = "You are asked to generate a text answer, and then generate both text and speech tokens at the same time."
SUC_PROMPT = (
    "You are asked to transcribe what you hear, and then generate both text and speech tokens at the same time."
)
ASR_INSTRUCTION = "Please help me transcribe the audio."
TTS_INSTRUCTION = "Please read the text aloud."


class Mode(NamedTuple):
    """What a mode hears, and how it answers.

    A spoken answer may begin with a *chain*: lines of plain text that lead from what was heard to what is said (chain
    of modality, arXiv 2506.09349). They stand before ``<|audio_bos|>``, each closed by a newline: what the user said,
    on one line, then the answer. Text and speech of the answer follow side by side, as in every spoken answer.
    """

    hears: bool  # the user's side is speech
    speaks: bool  # the assistant's side is text and speech
    transcribes: bool = False  # the chain has what the user said
    drafts: bool = False  # the chain has the answer

    @property
    def chains(self) -> bool:
        """Whether text stands before the speech."""
        return self.transcribes or self.drafts

    def given(self, heard: bool) -> Mode:
        """The mode in which one turn is answered: what the user wrote need not be transcribed."""
        transcribes = self.transcribes and heard
        if (heard, transcribes) == (self.hears, self.transcribes):
            return self
        return self._replace(hears=heard, transcribes=transcribes)

    def read_chain(self, text: str) -> tuple[str | None, str | None]:
        """Transcript and draft of a chain as it was written; None for what is no part of it."""
        if self.transcribes and self.drafts:
            transcript, _, draft = text.partition("\n")
            return transcript.strip(), draft.strip()
        return text.strip() if self.transcribes else None, text.strip() if self.drafts else None


MODES: dict[str, Mode] = {
    "S2M": Mode(hears=True, speaks=True),
    "S2T": Mode(hears=True, speaks=False),
    "T2M": Mode(hears=False, speaks=True),
    "T2T": Mode(hears=False, speaks=False),
    "STC": Mode(hears=True, speaks=True, transcribes=True, drafts=True),
    "SAC": Mode(hears=True, speaks=True, drafts=True),
    "SUC": Mode(hears=True, speaks=True, transcribes=True),
    "ASR": Mode(hears=True, speaks=False),  # with ASR_INSTRUCTION, answered by the user's own words
    "TTS": Mode(hears=False, speaks=True),  # with TTS_INSTRUCTION, answered by the text itself
}
SYSTEM_PROMPTS: dict[str, str] = {
    "S2M": S2M_PROMPT,
    "S2T": S2T_PROMPT,
    "T2M": S2M_PROMPT,
    "T2T": S2T_PROMPT,
    "STC": STC_PROMPT,
    "SAC": SAC_PROMPT,
    "SUC": SUC_PROMPT,
    "ASR": S2T_PROMPT,
    "TTS": S2M_PROMPT,
}


def function_calling_prompt(tools: Iterable[Mapping[str, Any]]) -> str:
    """System prompt of the released checkpoint for calling functions.

    Args:
        tools: Signatures of the functions, as Qwen takes them: JSON objects.
    """
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return f"""{S2T_PROMPT}
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class TextTokenizer(Protocol):
    """The part of a transformers tokenizer that layout and generation use."""

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text; special tokens inside it become one id each."""
        ...

    def decode(self, token_ids: list[int], skip_special_tokens: bool = ...) -> str:
        """Text of token ids."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> int:
        """Id of one token."""
        ...


class ChatFormat:
    r"""Token ids of the pieces of a ChatML dialogue.

    A dialogue is ``system(...)``, then per turn ``user_open()`` + content + ``close()`` or ``assistant_open()`` +
    content + ``close()``. Spoken content of either role stands between ``audio_bos`` and ``audio_eos``; before that of
    the assistant there may be a ``chain(...)``.

    Args:
        tokenizer: A text tokenizer that knows ``SPECIAL_TOKENS`` (``fac_lightning.backbones.load_text_tokenizer``).
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        missing = [t for t in SPECIAL_TOKENS if tokenizer.encode(t, add_special_tokens=False) != [self._id(t)]]
        if missing:
            raise ValueError(
                f"the text tokenizer does not know {', '.join(missing)} as single tokens; "
                "load it with fac_lightning.backbones.load_text_tokenizer, which adds them"
            )
        self.pad, self.im_end, self.audio = self._id(PAD), self._id(IM_END), self._id(AUDIO)
        self.audio_bos, self.audio_eos, self.sil = self._id(AUDIO_BOS), self._id(AUDIO_EOS), self._id(SIL)

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def system(self, prompt: str) -> list[int]:
        """The whole system turn."""
        return self.encode(f"{IM_START}system\n{prompt}{IM_END}\n")

    def user_open(self) -> list[int]:
        """What precedes the user's content."""
        return self.encode(f"{IM_START}user\n")

    def assistant_open(self) -> list[int]:
        """What precedes the assistant's content."""
        return self.encode(f"{IM_START}assistant\n")

    def chain(
        self,
        mode: Mode,
        transcript: str,
        answer: str,
        transcript_ids: list[int] | None = None,
        answer_ids: list[int] | None = None,
    ) -> list[int]:
        """What a mode writes before it speaks: the transcript on one line, the answer, a newline behind each.

        Every text and every newline is encoded by itself, so that a text has the tokens that it has elsewhere.

        Args:
            mode: In which the turn is answered.
            transcript: What the user said.
            answer: What will be spoken.
            transcript_ids: Tokens of the transcript, where they are known; of no use where it is not one line yet.
            answer_ids: Tokens of the answer, where they are known.
        """
        if not mode.chains:
            return []
        newline = self.encode("\n")
        ids: list[int] = []
        if mode.transcribes:
            line = " ".join(transcript.split())
            known = transcript_ids if line == transcript else None
            ids += [*(self.encode(line) if known is None else known), *newline]
        if mode.drafts:
            ids += [*(self.encode(answer) if answer_ids is None else answer_ids), *newline]
        return ids

    def close(self) -> list[int]:
        """What follows a turn's content: ``<|im_end|>`` and a newline."""
        return self.encode(f"{IM_END}\n")
