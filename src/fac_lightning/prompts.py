"""The words around a turn: chat marks, special tokens and system prompts, shared by layout and generation.

The strings are those of the released Fun-Audio-Chat (``utils/constant.py``), so that its checkpoints understand them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

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
    "SIL",
    "SPECIAL_TOKENS",
    "SPOKEN_S2M_PROMPT",
    "SYSTEM_PROMPTS",
    "TTS_INSTRUCTION",
    "ChatFormat",
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
ASR_INSTRUCTION = "Please help me transcribe the audio."
TTS_INSTRUCTION = "Please read the text aloud."

#: mode -> (user side is speech, assistant side is speech)
MODES: dict[str, tuple[bool, bool]] = {
    "S2M": (True, True),
    "S2T": (True, False),
    "T2M": (False, True),
    "T2T": (False, False),
    "ASR": (True, False),
    "TTS": (False, True),
}
SYSTEM_PROMPTS: dict[str, str] = {
    "S2M": S2M_PROMPT,
    "S2T": S2T_PROMPT,
    "T2M": S2M_PROMPT,
    "T2T": S2T_PROMPT,
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
    content + ``close()``. Spoken content of either role stands between ``audio_bos`` and ``audio_eos``.

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

    def close(self) -> list[int]:
        """What follows a turn's content: ``<|im_end|>`` and a newline."""
        return self.encode(f"{IM_END}\n")
