"""Strict intake: what is wrong with audio files, manifests and Shar folders, told before anything is trained on them.

Every problem is a ``fac_lightning.data.errors.BadData`` with a code; ``CASES`` says what each means. Nothing here knows
lhotse.
"""

from fac_lightning.data.intake.cases import CASES, REFUSED, WARNINGS, Case, bad_data
from fac_lightning.data.intake.limits import IntakeLimits
from fac_lightning.data.intake.lines import nearest_names, read_lines
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

__all__ = [
    "CASES",
    "REFUSED",
    "WARNINGS",
    "Case",
    "IntakeLimits",
    "SharItem",
    "bad_data",
    "check_field_file",
    "check_fields",
    "check_ids",
    "check_member",
    "check_shar_folder",
    "list_fields",
    "member_pairs",
    "nearest_names",
    "pair_up",
    "read_lines",
    "tar_items",
]
