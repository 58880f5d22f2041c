"""The words around a turn: chat marks, special tokens and system prompts, shared by layout and generation.

The strings are those of the released Fun-Audio-Chat (``utils/constant.py``), so that its checkpoints understand them.
"""

from __future__ import annotations

from typing import Protocol

__all__ = [
    "ASR_INSTRUCTION",
    "AUDIO",
    "AUDIO_BOS",
    "AUDIO_EOS",
    "IM_END",
    "IM_START",
    "MODES",
    "PAD",
    "SIL",
    "SPECIAL_TOKENS",
    "SYSTEM_PROMPTS",
    "TTS_INSTRUCTION",
    "ChatFormat",
    "TextTokenizer",
]

PAD = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
AUDIO = "<|AUDIO|>"
AUDIO_BOS = "<|audio_bos|>"
AUDIO_EOS = "<|audio_eos|>"
SIL = "<|sil|>"
SPECIAL_TOKENS = (PAD, IM_START, IM_END, AUDIO, AUDIO_BOS, AUDIO_EOS, SIL)

S2T_PROMPT = "You are asked to generate text tokens."
S2M_PROMPT = "You are asked to generate both text and speech tokens at the same time."
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
