"""Strict intake: what is wrong with audio files, manifests and Shar folders, told before anything is trained on them.

Every problem is a ``fac_lightning.data.errors.BadData`` with a code; ``CASES`` says what each means. Nothing here knows
lhotse.
"""

from fac_lightning.data.intake.audio import AudioReport, DeclaredAudio, check_audio, check_declared
from fac_lightning.data.intake.cases import CASES, REFUSED, WARNINGS, Case, bad_data
from fac_lightning.data.intake.header import AudioHeader, check_header, open_audio, read_header
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.lines import nearest_names, read_lines
from fac_lightning.data.intake.records import AudioPiece, audio_pieces, check_record, declared_audio
from fac_lightning.data.intake.samples import SampleStats, judge_samples, measure_samples, scan_samples
from fac_lightning.data.intake.shar import (
    SharItem,
    check_field_file,
    check_fields,
    check_ids,
    check_member,
    check_shar_folder,
    list_fields,
    member_pairs,
    pair_up,
    tar_items,
)
from fac_lightning.data.intake.sources import SourceGate, check_command

__all__ = [
    "CASES",
    "REFUSED",
    "WARNINGS",
    "AudioHeader",
    "AudioPiece",
    "AudioReport",
    "Case",
    "DeclaredAudio",
    "IntakeLimits",
    "SampleStats",
    "SharItem",
    "SourceGate",
    "audio_pieces",
    "bad_data",
    "check_audio",
    "check_command",
    "check_declared",
    "check_field_file",
    "check_fields",
    "check_header",
    "check_ids",
    "check_member",
    "check_record",
    "check_shar_folder",
    "declared_audio",
    "judge_samples",
    "list_fields",
    "measure_samples",
    "member_pairs",
    "nearest_names",
    "open_audio",
    "pair_up",
    "read_header",
    "read_lines",
    "scan_samples",
    "tar_items",
]
