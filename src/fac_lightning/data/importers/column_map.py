"""Which column of a table is what of a dialogue, with the maps of published sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.told import nearest

__all__ = ["COLUMN_MAPS", "ColumnMap", "choose_map"]

SNAC_FRAME_RATE = 24000 / 2048  # Hz, of groups of seven codes of SNAC at 24 kHz


@dataclass(frozen=True)
class ColumnMap:
    """Names of columns; a row is a question and its answer.

    Args:
        user_audio: The user's speech.
        user_text: What the user says or writes.
        assistant_audio: The assistant's speech.
        assistant_text: What the assistant says or writes.
        assistant_codes: The assistant's speech as codes: a list, or a text of numbers; left out where there is audio.
        system: System prompt.
        id: Name of the row, or of its session where ``round`` counts rows.
        session: Columns that are equal in the rows of one conversation, where no ``id`` is.
        round: Place of a row in its conversation, from 1.
        optional: Of the names above those that a table may lack.
        history: Texts of the user hold the conversation before: ``USER: ... ASSISTANT: ... <USER>: ...``.
        codes_tokenizer: Name of the tokenizer that made the codes.
        codes_frame_rate: Hz of the codes.
        codes_books: Codes of one frame.
    """

    user_audio: str | None = None
    user_text: str | None = None
    assistant_audio: str | None = None
    assistant_text: str | None = None
    assistant_codes: str | None = None
    system: str | None = None
    id: str | None = None
    session: tuple[str, ...] = ()
    round: str | None = None
    optional: tuple[str, ...] = ()
    history: bool = False
    codes_tokenizer: str | None = None
    codes_frame_rate: float | None = None
    codes_books: int = 1

    def columns(self) -> dict[str, str]:
        """Column -> what it is."""
        named = {getattr(self, name): name for name in COLUMN_FIELDS if getattr(self, name)}
        return {**named, **dict.fromkeys(self.session, "session")}

    def missing(self, columns: Iterable[str]) -> list[str]:
        """Columns that must be there and are not."""
        there = set(columns)
        return [column for column in self.columns() if column not in there and column not in self.optional]

    def changed(self, columns: Mapping[str, object]) -> ColumnMap:
        """The map with other columns; an empty name takes one away.

        Raises:
            ValueError: There is no such field.
        """
        known = [field.name for field in fields(self)]
        for name in columns:
            if name not in known:
                raise ValueError(f"no field {name!r} of a column map.{nearest(name, known)} It has {', '.join(known)}")
        plain = {name: value or None if name in COLUMN_FIELDS else value for name, value in columns.items()}
        if isinstance(session := plain.get("session"), str):
            plain["session"] = tuple(filter(None, session.split(",")))
        elif "session" in plain:
            plain["session"] = tuple(plain["session"] or ())  # type: ignore[arg-type]
        return replace(self, **plain)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        """Refuse what makes no turn, and codes that nobody made."""
        if not (self.user_audio or self.user_text or self.assistant_audio or self.assistant_text):
            raise ValueError("a column map needs one of user_audio, user_text, assistant_audio and assistant_text")
        if self.assistant_codes and not (self.codes_tokenizer and self.codes_frame_rate):
            raise ValueError(
                f"the codes in {self.assistant_codes!r} need codes_tokenizer, the name of what made them, and "
                "codes_frame_rate in Hz: the same numbers mean other sounds elsewhere"
            )


#: fields of a map that name one column
COLUMN_FIELDS = (
    "user_audio",
    "user_text",
    "assistant_audio",
    "assistant_text",
    "assistant_codes",
    "system",
    "id",
    "round",
)

#: Maps of published sets. The codes of InstructS2S-200K's conversion are inferred from the vocoder its recipe uses.
COLUMN_MAPS = {
    "spoken-alpaca-gpt4": ColumnMap(
        user_audio="input_audio",
        user_text="speech_input",
        assistant_audio="output_audio",
        assistant_text="output",
    ),
    "voice-assistant-400k": ColumnMap(
        user_audio="question_audio",
        user_text="question",
        assistant_text="answer",
        assistant_codes="answer_snac",
        session=("split_name", "index"),
        round="round",
        codes_tokenizer="snac_24khz",
        codes_frame_rate=SNAC_FRAME_RATE,
        codes_books=7,
    ),
    "instruct-s2s-200k": ColumnMap(
        user_audio="question_audio",
        user_text="question",
        assistant_audio="answer_audio",
        assistant_text="answer",
        assistant_codes="speech_token",
        id="id",
        round="round",
        optional=("answer_audio", "speech_token"),
        history=True,
        codes_tokenizer="speech_tokenizer_v2_25hz",
        codes_frame_rate=25.0,
    ),
    "slam-omni": ColumnMap(
        user_audio="question_audio",
        user_text="question",
        assistant_text="answer",
        assistant_codes="answer_cosyvoice_speech_token",
        session=("split_name", "index"),
        round="round",
        optional=("split_name", "index", "round"),
        history=True,
        codes_tokenizer="speech_tokenizer_v1",
        codes_frame_rate=50.0,
    ),
    "slam-omni-jsonl": ColumnMap(
        user_audio="source_wav",
        user_text="source_text",
        assistant_text="target_text",
        assistant_codes="target_token",
        id="key",
        session=("split_name", "index"),
        round="round",
        optional=("key", "split_name", "index", "round"),
        history=True,
        codes_tokenizer="speech_tokenizer_v1",
        codes_frame_rate=50.0,
    ),
}


def choose_map(columns: Iterable[str], where: str, names: Iterable[str] = tuple(COLUMN_MAPS)) -> str:
    """Name of the map that a table's columns fit, the fullest of several.

    Raises:
        BadData: None does (FAC-I01).
    """
    there, names = list(columns), list(names)
    fitting = [name for name in names if not COLUMN_MAPS[name].missing(there)]
    if fitting:
        return max(fitting, key=lambda name: len(COLUMN_MAPS[name].columns().keys() & set(there)))
    best = min(names, key=lambda name: (len(COLUMN_MAPS[name].missing(there)), names.index(name)))
    raise wrong_columns(COLUMN_MAPS[best], there, where, best)


def wrong_columns(chosen: ColumnMap, columns: Iterable[str], where: str, name: str | None) -> BadData:
    """What to say of a table without the columns of a map."""
    there = list(columns)
    missing = chosen.missing(there)
    told = ", ".join(f"{column!r} ({chosen.columns()[column]})" for column in missing)
    others = [other for other, one in COLUMN_MAPS.items() if other != name and not one.missing(there)]
    field = chosen.columns()[missing[0]] if missing else "user_audio"
    advice = f"Map them: --column {field}=NAME (columns: {{{field}: NAME}}); --column {field}= says that there is none."
    if others:
        advice = f"Take the map that fits: --map {others[0]}. Or map them: --column {field}=NAME."
    rule = f"also {told}" + (f" for the map {name!r}, the nearest of {', '.join(COLUMN_MAPS)}" if name else "")
    return BadData("FAC-I01", "missing columns", where, f"columns {', '.join(map(repr, there))}", rule, advice)
