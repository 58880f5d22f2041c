"""Room data: dialogues on disk, layout, packing, data modules. lhotse is imported only when it is used."""

from fac_lightning.data.chat import SpeechChatDataModule
from fac_lightning.data.code_extraction import CodeExtraction
from fac_lightning.data.codec_data import CodecDataModule
from fac_lightning.data.codes import CodeStore, tokenizer_fingerprint
from fac_lightning.data.corpus import Corpus
from fac_lightning.data.data_check import CheckResult, DataCheck
from fac_lightning.data.dialogue import (
    Dialogue,
    DialogueWriter,
    Turn,
    load_turn_audio,
    load_turn_codes,
    read_cuts,
    read_dialogues,
)
from fac_lightning.data.distorted import DistortedDialogues
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers import (
    COLUMN_MAPS,
    IMPORT_FORMATS,
    ColumnMap,
    DialogueImport,
    FunAudioChatImport,
    HuggingFaceImport,
    ImportFormat,
    ImportOptions,
    KaldiImport,
    LhotseImport,
    MoshiImport,
    NemoImport,
    ShareGPTImport,
    SlamOmniImport,
    SoundFolderImport,
    export_fun_audio_chat_json,
    guess_format,
)
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.kmeans_training import KMeansTraining
from fac_lightning.data.layout import Clip, Cost, Row, SpokenTurn, fit_mode, lay_out
from fac_lightning.data.mixing import DataSource, Draw, draw_rows, mixing_shares
from fac_lightning.data.mode_schedule import LinearModes, ModeSchedule
from fac_lightning.data.packing import Budget, collate_line, pack_lines, share_totals
from fac_lightning.data.preference import PreferenceDataModule
from fac_lightning.data.preference_corpus import PairCorpus
from fac_lightning.data.preference_pairs import (
    PreferencePair,
    PreferenceWriter,
    TurnAnswer,
    WrittenAnswer,
    read_pairs,
)
from fac_lightning.data.reference_store import ReferenceStore
from fac_lightning.data.row_plans import RowPlanner
from fac_lightning.data.row_source import CorpusItem, RowSource
from fac_lightning.data.sentences import make_sentences
from fac_lightning.data.shards import DialogueSharding, ShardCorpus, ShardFolder, open_source, read_shards
from fac_lightning.data.sources import DialogueSource, JsonlDialogues
from fac_lightning.data.stats import DialogueStats
from fac_lightning.data.stream import LineStream, PackedStream, StreamPlace
from fac_lightning.data.stream_tally import StreamTally
from fac_lightning.data.swapped_answers import SwappedAnswers
from fac_lightning.data.synthesis import DialogueSynthesis
from fac_lightning.data.synthesis_plan import SynthesisSplit
from fac_lightning.data.text import TextTokenizerTraining
from fac_lightning.data.turn_codes import TurnCodes
from fac_lightning.data.world import Fact, Question, World

__all__ = [
    "COLUMN_MAPS",
    "IMPORT_FORMATS",
    "BadData",
    "Budget",
    "CheckResult",
    "Clip",
    "CodeExtraction",
    "CodeStore",
    "CodecDataModule",
    "ColumnMap",
    "Corpus",
    "CorpusItem",
    "Cost",
    "DataCheck",
    "DataSource",
    "Dialogue",
    "DialogueImport",
    "DialogueSharding",
    "DialogueSource",
    "DialogueStats",
    "DialogueSynthesis",
    "DialogueWriter",
    "DistortedDialogues",
    "Draw",
    "Fact",
    "FunAudioChatImport",
    "HuggingFaceImport",
    "ImportFormat",
    "ImportOptions",
    "IntakeLimits",
    "JsonlDialogues",
    "KMeansTraining",
    "KaldiImport",
    "LhotseImport",
    "LineStream",
    "LinearModes",
    "ModeSchedule",
    "MoshiImport",
    "NemoImport",
    "PackedStream",
    "PairCorpus",
    "PreferenceDataModule",
    "PreferencePair",
    "PreferenceWriter",
    "Question",
    "ReferenceStore",
    "Row",
    "RowPlanner",
    "RowSource",
    "ShardCorpus",
    "ShardFolder",
    "ShareGPTImport",
    "SlamOmniImport",
    "SoundFolderImport",
    "SpeechChatDataModule",
    "SpokenTurn",
    "StreamPlace",
    "StreamTally",
    "SwappedAnswers",
    "SynthesisSplit",
    "TextTokenizerTraining",
    "Turn",
    "TurnAnswer",
    "TurnCodes",
    "World",
    "WrittenAnswer",
    "collate_line",
    "draw_rows",
    "export_fun_audio_chat_json",
    "fit_mode",
    "guess_format",
    "lay_out",
    "load_turn_audio",
    "load_turn_codes",
    "make_sentences",
    "mixing_shares",
    "open_source",
    "pack_lines",
    "read_cuts",
    "read_dialogues",
    "read_pairs",
    "read_shards",
    "share_totals",
    "tokenizer_fingerprint",
]
