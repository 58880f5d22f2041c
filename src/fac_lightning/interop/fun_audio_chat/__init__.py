"""The released Fun-Audio-Chat: its checkpoints, its processor, its way of generating."""

from fac_lightning.interop.fun_audio_chat.processor import FunAudioChatProcessor

__all__ = ["FunAudioChatProcessor"]
