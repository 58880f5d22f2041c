"""``fac list``: every part of every slot with its arguments, read from source, and every mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fac_lightning.cli.arguments import parser
from fac_lightning.config import BadPath, Definition, Unreadable, UserError, find, lineage, public_names
from fac_lightning.config.errors import did_you_mean
from fac_lightning.prompts import ASR_INSTRUCTION, MODES, SYSTEM_PROMPTS, TTS_INSTRUCTION

__all__ = ["ROOMS", "main", "parts"]

#: room -> base classes of its parts, or functions that are parts; "run" stands for anything with a method run(), a job
ROOMS: dict[str, tuple[str, ...]] = {
    "tokenizers": ("SpeechTokenizer",),
    "encoders": ("SpeechEncoder",),
    "adapters": ("CodeAdapter", "FeatureAdapter", "Fusion"),
    "backbones": ("Backbone",),
    "heads": ("SpeechHead",),
    "detokenizers": ("SpeechDetokenizer",),
    "replies": ("ReplyRule",),
    "models": ("Module",),
    "tasks": ("LightningModule", "Reference", "run"),
    "data": ("LightningDataModule", "ModeSchedule", "run"),
    "callbacks": ("Callback", "ProgressBar"),
    "synthesizers": ("Synthesizer",),
    "recognizers": ("Recognizer",),
    "evaluation": ("run",),
    "preferences": ("CandidateSource", "ModelAnswers", "run"),
    "data.distortions": ("Distortion",),
    "merging": ("MergeMethod", "run", "ema", "greedy_soup", "uniform_soup"),
    "losses": (),  # functions
}

#: what stands beside the parts: how a turn is given and answered
PATTERNS = "modes"


def main(words: Sequence[str]) -> int:
    """Print parts and modes."""
    made = parser("list", "Every part of every slot, with its arguments and what they are without you; every mode.")
    made.add_argument("--all", action="store_true", help="also what is public but fits no slot: functions, helpers")
    known = [*ROOMS, PATTERNS]
    made.add_argument("slot", nargs="?", help=f"one of {', '.join(known)}; all without it")
    args = made.parse_args(words)
    rooms: Sequence[str] = known
    if args.slot:
        rooms = [room for room in known if args.slot in (room, room.rstrip("s"))]
        if not rooms:
            raise UserError(f"there is no slot '{args.slot}'.{did_you_mean(args.slot, known)} {', '.join(known)}")
    for room in rooms:
        print(room)
        if room == PATTERNS:
            _print_modes()
            continue
        for path, definition in parts(room, args.all):
            mark = "  (base class: derive from it)" if definition.abstract else ""
            print(f"  {path}{mark}")
            if definition.doc:
                print(f"      {definition.doc.splitlines()[0]}")
            for argument in definition.arguments:
                print(f"        {argument}")
        print()
    return 0


def _print_modes() -> None:
    """What is heard, what is written before speech, what is said, and the system prompt that asks for it."""
    asked = {"ASR": ASR_INSTRUCTION, "TTS": TTS_INSTRUCTION}
    for name, mode in MODES.items():
        given = ["speech" if mode.hears else "text", *([f'"{asked[name]}"'] if name in asked else [])]
        written = [*(["transcript"] if mode.transcribes else []), *(["text"] if mode.drafts else [])]
        said = "text and speech" if mode.speaks else "text"
        print(f"  {name}  {' + '.join(given)} -> {', then '.join([*written, said])}")
        print(f"      {SYSTEM_PROMPTS[name]}")
    print()


def parts(room: str, everything: bool = False) -> Iterator[tuple[str, Definition]]:
    """Parts of a room by the path that a recipe names, base classes first.

    Args:
        room: One of ``ROOMS``.
        everything: All public classes and functions.
    """
    found = []
    for name in public_names(f"fac_lightning.{room}"):
        path = f"fac_lightning.{room}.{name}"
        try:
            definition = find(path)
        except (BadPath, Unreadable):  # a constant
            continue
        if everything or not ROOMS[room] or {name, *lineage(definition.path)} & set(ROOMS[room]):
            found.append((path, definition))
    yield from sorted(found, key=lambda item: not item[1].abstract)
