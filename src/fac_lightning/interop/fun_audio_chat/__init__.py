"""The released Fun-Audio-Chat: its checkpoints, its processor, its way of generating."""

from fac_lightning.interop.fun_audio_chat.checkpoint import Coverage, compare
from fac_lightning.interop.fun_audio_chat.files import load, save
from fac_lightning.interop.fun_audio_chat.generation import SpeechPolicy
from fac_lightning.interop.fun_audio_chat.model import FunAudioChat, FunAudioChatOutput
from fac_lightning.interop.fun_audio_chat.processor import FunAudioChatProcessor
from fac_lightning.interop.fun_audio_chat.run_folder import from_run, to_run
from fac_lightning.interop.fun_audio_chat.start import StartingWeights

__all__ = [
    "Coverage",
    "FunAudioChat",
    "FunAudioChatOutput",
    "FunAudioChatProcessor",
    "SpeechPolicy",
    "StartingWeights",
    "compare",
    "from_run",
    "load",
    "save",
    "to_run",
]
