"""Other people's training data as dialogues folders: in, and out where the format allows."""

from fac_lightning.data.importers.fun_audio_chat import FunAudioChatImport
from fac_lightning.data.importers.fun_audio_export import export_fun_audio_chat_json

__all__ = ["FunAudioChatImport", "export_fun_audio_chat_json"]
