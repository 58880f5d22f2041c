"""Other people's training data as dialogues folders: in, and out where the format allows."""

from fac_lightning.data.importers.base import DialogueImport, Pending
from fac_lightning.data.importers.column_map import COLUMN_MAPS, ColumnMap
from fac_lightning.data.importers.formats import IMPORT_FORMATS, ImportFormat, guess_format
from fac_lightning.data.importers.fun_audio_chat import FunAudioChatImport
from fac_lightning.data.importers.fun_audio_export import export_fun_audio_chat_json
from fac_lightning.data.importers.hugging_face import HuggingFaceImport
from fac_lightning.data.importers.kaldi import KaldiImport
from fac_lightning.data.importers.lhotse_cuts import LhotseImport
from fac_lightning.data.importers.moshi import MoshiImport
from fac_lightning.data.importers.nemo import NemoImport
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.sharegpt import ShareGPTImport
from fac_lightning.data.importers.slam_omni import SlamOmniImport
from fac_lightning.data.importers.sound_folder import SoundFolderImport

__all__ = [
    "COLUMN_MAPS",
    "IMPORT_FORMATS",
    "ColumnMap",
    "DialogueImport",
    "FunAudioChatImport",
    "HuggingFaceImport",
    "ImportFormat",
    "ImportOptions",
    "KaldiImport",
    "LhotseImport",
    "MoshiImport",
    "NemoImport",
    "Pending",
    "ShareGPTImport",
    "SlamOmniImport",
    "SoundFolderImport",
    "export_fun_audio_chat_json",
    "guess_format",
]
