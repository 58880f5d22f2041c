"""Hugging Face datasets with columns of audio become dialogues folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from fac_lightning.data.dialogue import Dialogue, Role, Turn
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import DialogueImport, Pending
from fac_lightning.data.importers.code_cells import parse_codes
from fac_lightning.data.importers.column_map import COLUMN_MAPS, ColumnMap, choose_map, wrong_columns
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.sound import Sound, read_sound, sound_of_samples, spoken_turn
from fac_lightning.data.importers.table_rows import TableRows, open_rows
from fac_lightning.data.importers.told import bad_field, nearest

__all__ = ["HuggingFaceImport"]

LAST_USER = "<USER>:"
HISTORY = re.compile(r"\s*(USER|ASSISTANT):\s*")


@dataclass(frozen=True)
class _Row:
    where: str
    cells: Mapping[str, Any]
    round: int


class HuggingFaceImport(DialogueImport):
    """Job: a table whose rows are questions and answers, with audio in columns, becomes a dialogues folder.

    Parquet and arrow files, as downloaded or as ``save_to_disk`` leaves them, are read with pyarrow (extra ``hf``),
    JSON without it; a dataset of the hub is streamed with ``datasets`` (extra ``hub``). A cell of audio is
    ``{bytes, path}``, ``{array, sampling_rate}``, bytes or a path.

    Rows of one conversation (``ColumnMap.session``) make one dialogue, in the order of ``round``, wherever they stand;
    where rounds are missing, a new one begins. What the map does not name and is a text or number is kept with the
    dialogue.

    Args:
        source: File, folder, or ``owner/name`` of the hub.
        out: Dialogues folder.
        column_map: One of ``COLUMN_MAPS``; the one that fits the columns when None.
        columns: Fields of the map that differ, such as ``{"user_audio": "audio"}``; a whole map where ``column_map``
            is None and it names a turn's column.
        split: Which part, where there are several.
        options: Rules; the plain ones when None.
    """

    def __init__(
        self,
        source: str,
        out: str,
        column_map: str | None = None,
        columns: dict[str, Any] | None = None,
        split: str | None = None,
        options: ImportOptions | None = None,
    ) -> None:
        super().__init__(source, out, options)
        self.written, self.column_map, self.columns, self.split = source, column_map, columns, split
        if column_map is not None and column_map not in COLUMN_MAPS:
            close = nearest(column_map, COLUMN_MAPS)
            raise ValueError(f"there is no map {column_map!r}.{close} Choose from {', '.join(COLUMN_MAPS)}")

    @cached_property
    def rows(self) -> TableRows:
        """The opened table."""
        return open_rows(self.source, self.written, self.split)

    @cached_property
    def chosen(self) -> ColumnMap:
        """The map that the columns fit.

        Raises:
            BadData: They lack some (FAC-I01).
        """
        there, name = self.rows.columns, self.column_map
        if name is None and not self.columns:
            name = choose_map(there, str(self.source), self.map_names())
        made = COLUMN_MAPS[name].changed(self.columns or {}) if name else _whole_map(self.columns or {})
        if made.missing(there):
            raise wrong_columns(made, there, str(self.source), name)
        return made

    def map_names(self) -> list[str]:
        """Maps that are tried where none is named."""
        return list(COLUMN_MAPS)

    def check_source(self) -> None:
        """Open the table."""
        assert self.chosen

    def files(self) -> list[Path]:
        """The files that are read."""
        return self.rows.files

    def known_by(self) -> str:
        """The files' content, or the name on the hub."""
        return super().known_by() if self.files() else f"{self.written}, {self.split or 'train'}"

    def pending(self) -> Iterator[Pending | BadData]:
        """One dialogue a conversation, once its last row is seen."""
        light = self._light_columns()
        members = Counter(key for _, key, _ in self._keys(light) if key is not None) if light else Counter()
        asked = [name for name in self.rows.columns if name in self.chosen.columns() or name in self._plain_columns()]
        waiting: dict[str, list[_Row]] = {}
        for number, (where, cells) in enumerate(self.rows.read(asked)):
            if isinstance(cells, BadData):
                yield cells
                continue
            key, place = self._key(cells)
            if isinstance(place, BadData):
                yield place
                members[key or ""] -= 1
            else:
                row = _Row(where, cells, place)
                if key is None:
                    yield self._pending(f"{self.source.stem}-{number}", [row])
                    continue
                waiting.setdefault(key, []).append(row)
            if key is not None and len(waiting.get(key, ())) == members[key]:
                yield from self._conversation(key, waiting.pop(key, []))

    # ---- rows of one conversation

    def _light_columns(self) -> list[str]:
        named = [self.chosen.id, *self.chosen.session, self.chosen.round]
        return [name for name in named if name and name in self.rows.columns]

    def _plain_columns(self) -> set[str]:
        return set(self.rows.columns)

    def _keys(self, light: list[str]) -> Iterator[tuple[str, str | None, int | BadData]]:
        for where, cells in self.rows.read(light):
            if not isinstance(cells, BadData):
                yield where, *self._key(cells)

    def _key(self, cells: Mapping[str, Any]) -> tuple[str | None, int | BadData]:
        """Name of the conversation that a row is of, if it says so, and its place there."""
        one, several = cells.get(self.chosen.id or ""), [cells.get(name) for name in self.chosen.session]
        parts = [one] if one is not None else [part for part in several if part is not None]
        key = "-".join(map(str, parts)) if parts else None
        place = cells.get(self.chosen.round or "")
        try:
            return key, 1 if place is None else int(place)
        except (TypeError, ValueError):
            return key, bad_field(f"{self.source}, {key}, column {self.chosen.round!r}", place, "a whole number")

    def _conversation(self, key: str, rows: list[_Row]) -> Iterator[Pending | BadData]:
        """Dialogues of the rows of one conversation: one, or more where rounds are missing in between."""
        rows = sorted(rows, key=lambda row: row.round)
        runs: list[list[_Row]] = []
        for row in rows:
            if runs and row.round == runs[-1][-1].round:
                rule = f"a round that {runs[-1][-1].where} does not have"
                told = f"round {row.round} of {key!r}"
                yield BadData("FAC-D06", "row that is there already", row.where, told, rule, "Remove one of the two.")
            elif runs and row.round == runs[-1][-1].round + 1:
                runs[-1].append(row)
            else:
                runs.append([row])
        for run in runs:
            yield self._pending(key if run[0].round <= 1 else f"{key}-r{run[0].round}", run)

    def _pending(self, name: str, rows: list[_Row]) -> Pending:
        return Pending(name, rows[0].where, partial(self._dialogue, name, rows))

    # ---- turns

    def _dialogue(self, name: str, rows: list[_Row]) -> Dialogue:
        first, chosen = rows[0], self.chosen
        turns = self._before(first)
        for row in rows:
            turns += [turn for turn in (self._user(row), self._assistant(row)) if turn is not None]
        if not turns:
            raise bad_field(first.where, {key: first.cells[key] for key in chosen.columns()}, "a text or sound")
        system = first.cells.get(chosen.system or "")
        custom = self.kept(first.cells, set(chosen.columns()) - set(chosen.session))
        if first.round > 1:
            custom["first_round"] = first.round
        return Dialogue(name, tuple(turns), None if system is None else str(system), custom)

    def _before(self, row: _Row) -> list[Turn]:
        """Turns of the conversation before a row, as its text tells them."""
        text = row.cells.get(self.chosen.user_text or "") or ""
        if not self.chosen.history or LAST_USER not in text:
            return []
        before = text.rsplit(LAST_USER, 1)[0].strip()
        if not before:
            return []
        _, *told = HISTORY.split(before)
        roles = {"USER": "user", "ASSISTANT": "assistant"}
        turns = [Turn(roles[told[i]], told[i + 1].strip()) for i in range(0, len(told), 2)]  # type: ignore[arg-type]
        if not turns or HISTORY.split(before)[0].strip() or any(not turn.text for turn in turns):
            where = f"{row.where}, column {self.chosen.user_text!r}"
            raise bad_field(where, text, "USER: ... ASSISTANT: ... before <USER>: ..., none of them empty")
        return turns

    def _user(self, row: _Row) -> Turn | None:
        text = self._text(row, self.chosen.user_text)
        if self.chosen.history:
            text = text.rsplit(LAST_USER, 1)[-1].strip()
        return self._turn("user", text, row, self.chosen.user_audio)

    def _assistant(self, row: _Row) -> Turn | None:
        chosen, text = self.chosen, self._text(row, self.chosen.assistant_text)
        turn = self._turn("assistant", text, row, chosen.assistant_audio)
        cell = row.cells.get(chosen.assistant_codes or "")
        if (
            cell is None
            or (isinstance(cell, str) and not cell.strip())
            or (turn is not None and turn.audio is not None)
        ):
            return turn
        where = f"{row.where}, column {chosen.assistant_codes!r}"
        assert chosen.codes_tokenizer is not None
        assert chosen.codes_frame_rate is not None
        codes = parse_codes(cell, where, chosen.codes_tokenizer, chosen.codes_frame_rate, chosen.codes_books)
        return Turn("assistant", text, codes=codes)

    def _text(self, row: _Row, column: str | None) -> str:
        cell = row.cells.get(column or "")
        if cell is not None and not isinstance(cell, str):
            raise bad_field(f"{row.where}, column {column!r}", cell, "a text")
        return cell or ""

    def _turn(self, role: Role, text: str, row: _Row, column: str | None) -> Turn | None:
        sound = self._sound(row.cells.get(column or ""), f"{row.where}, column {column!r}")
        if sound is not None:
            return spoken_turn(role, text, sound, self.options)
        return Turn(role, text) if text.strip() else None

    def _sound(self, cell: Any, where: str) -> Sound | None:
        if isinstance(cell, Mapping):
            if cell.get("bytes") is not None:
                cell = cell["bytes"]
            elif cell.get("array") is not None:
                samples, rate = np.asarray(cell["array"], dtype=np.float32), cell.get("sampling_rate")
                if not isinstance(rate, int) or rate <= 0:
                    raise bad_field(where, rate, "a sampling_rate in Hz beside the array")
                # (C, S) where datasets decoded several channels
                return sound_of_samples(samples.T if samples.ndim == 2 else samples, rate, where, self.options)
            else:
                cell = cell.get("path")
        if cell is None:
            return None
        if isinstance(cell, str):
            cell = self.paths.file(cell, where)
        elif not isinstance(cell, bytes):
            raise bad_field(where, cell, "{bytes, path}, {array, sampling_rate}, bytes or a path")
        return read_sound(cell, where, self.options)


def _whole_map(columns: Mapping[str, Any]) -> ColumnMap:
    """A map that stands on its own."""
    known = [name for name in columns if name in ("user_audio", "user_text", "assistant_audio", "assistant_text")]
    if not known:
        raise ValueError(
            "columns names no user_audio, user_text, assistant_audio or assistant_text, so there is no turn; name one, "
            f"or a column_map that they change: {', '.join(COLUMN_MAPS)}"
        )
    return ColumnMap(**{known[0]: columns[known[0]]}).changed(columns)
