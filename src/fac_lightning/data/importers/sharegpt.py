"""LLaMA-Factory's ShareGPT data with audios become dialogues folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fac_lightning.data.dialogue import Dialogue, Turn
from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.base import DialogueImport, Pending
from fac_lightning.data.importers.json_records import first_record, read_json, read_json_records
from fac_lightning.data.importers.options import ImportOptions
from fac_lightning.data.importers.sound import read_sound, spoken_turn
from fac_lightning.data.importers.told import bad_field, nearest

__all__ = ["ShareGPTImport"]

PLACEHOLDER = "<audio>"
DESCRIPTION = "dataset_info.json"
COLUMNS = {"messages": "conversations", "system": "system", "tools": "tools", "audios": "audios"}
TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


class ShareGPTImport(DialogueImport):
    """Job: LLaMA-Factory's ShareGPT data become a dialogues folder.

    A record has messages (``conversations``, or ``messages`` as OpenAI writes them) and ``audios``, one path for every
    ``<audio>`` in them. Where the texts beside the user's ``<audio>`` are instructions, as in LLaMA-Factory, sound and
    text become turns of their own, in their order; the assistant's text beside its ``<audio>`` is what is said.
    Messages without ``<audio>`` are text. Tools are kept with the dialogue, messages that call them are refused.

    Args:
        source: JSON or JSON-lines file, or ``dataset_info.json`` (or its folder), which says file, columns and tags.
        out: Dialogues folder.
        dataset: Which one of ``dataset_info.json``, where it has several.
        columns: ``messages``, ``system``, ``tools``, ``audios`` under other names.
        tags: ``role_tag``, ``content_tag``, ``user_tag``, ``assistant_tag``, ``system_tag`` under other names; read off
            the first message when None.
        user_text_is_said: The user's text beside ``<audio>`` is its transcript.
        options: Rules; the plain ones when None.
    """

    def __init__(
        self,
        source: str,
        out: str,
        dataset: str | None = None,
        columns: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        user_text_is_said: bool = False,
        options: ImportOptions | None = None,
    ) -> None:
        super().__init__(source, out, options)
        for name, given, known in (("columns", columns, COLUMNS), ("tags", tags, TAGS)):
            if unknown := sorted((given or {}).keys() - known.keys()):
                raise ValueError(
                    f"{name} has no {unknown[0]!r}.{nearest(unknown[0], known)} It has {', '.join(sorted(known))}"
                )
        self.dataset, self.columns, self.tags, self.user_text_is_said = dataset, columns, tags, user_text_is_said

    def files(self) -> list[Path]:
        """The file of the records."""
        return [self._described()[0]]

    def pending(self) -> Iterator[Pending | BadData]:
        """One dialogue a record."""
        file, columns, tags = self._described()
        first = first_record(file)
        if first is not None and columns["messages"] not in first:
            rule = f"{columns['messages']!r} (messages)"
            advice = "Say what they are called: --set columns.messages=NAME, or in the columns of dataset_info.json."
            raise BadData(
                "FAC-I01", "missing columns", str(file), f"columns {', '.join(map(repr, first))}", rule, advice
            )
        for number, (where, record) in enumerate(read_json_records(file)):
            if isinstance(record, BadData):
                yield record
                continue
            name = str(record.get("id", f"{file.stem}-{number}"))
            yield Pending(name, where, partial(self._dialogue, name, where, record, columns, tags))

    def _described(self) -> tuple[Path, dict[str, str], dict[str, str]]:
        """File, columns and tags, as dataset_info.json and the arguments say."""
        source = self.source / DESCRIPTION if self.source.is_dir() else self.source
        told: Mapping[str, Any] = {}
        if source.name == DESCRIPTION:
            if not source.is_file():
                raise FileNotFoundError(f"{source} does not exist; name it, or a JSON file with records")
            told = self._described_set(read_json(source), source)
            source = source.parent / told["file_name"]
            if not source.is_file():
                raise FileNotFoundError(f"{source} does not exist; {DESCRIPTION} names it")
        columns = {**COLUMNS, **(told.get("columns") or {}), **(self.columns or {})}
        openai = {}
        first = first_record(source) or {}
        if "messages" not in (told.get("columns") or {}) and "messages" not in (self.columns or {}):
            columns["messages"] = next((name for name in ("conversations", "messages") if name in first), "messages")
        messages = first.get(columns["messages"])
        if isinstance(messages, list) and messages and isinstance(messages[0], dict) and "role" in messages[0]:
            openai = OPENAI_TAGS
        return source, columns, {**TAGS, **openai, **(told.get("tags") or {}), **(self.tags or {})}

    def _described_set(self, info: Any, where: Path) -> Mapping[str, Any]:
        if not isinstance(info, dict):
            raise bad_field(str(where), info, "an object of datasets")
        name = self.dataset
        if name is None:
            heard = [key for key, one in info.items() if "audios" in ((one or {}).get("columns") or {})]
            heard = heard or list(info)
            if len(heard) != 1:
                raise ValueError(f"{where} has the datasets {', '.join(heard)}; choose one: --set dataset=NAME")
            name = heard[0]
        if name not in info:
            raise ValueError(f"{where} has no dataset {name!r}.{nearest(name, info)} It has {', '.join(info)}")
        told = info[name]
        if told.get("ranking"):
            raise ValueError(f"{where}: {name!r} has preference pairs, and these are dialogues; see LlamaFactoryPairs")
        if told.get("formatting", "alpaca") != "sharegpt" or "file_name" not in told:
            raise ValueError(f"{where}: {name!r} is no local dataset of the formatting 'sharegpt'; convert it to that")
        return told  # type: ignore[no-any-return]

    def _dialogue(
        self, name: str, where: str, record: Mapping[str, Any], columns: Mapping[str, str], tags: Mapping[str, str]
    ) -> Dialogue:
        messages, audios = record.get(columns["messages"]), record.get(columns["audios"])
        audios = [audios] if isinstance(audios, str) else audios or []
        system = record.get(columns["system"]) or None
        if not isinstance(messages, list) or not messages:
            raise bad_field(f"{where}, {columns['messages']}", messages, "a list of messages")
        if not isinstance(audios, list):
            raise bad_field(f"{where}, {columns['audios']}", audios, "a list of paths")
        said = [
            self._message(message, f"{where}, {columns['messages']}[{i}]", tags) for i, message in enumerate(messages)
        ]
        if said[0][0] == "system":
            system, said = said[0][1], said[1:]
        if (due := sum(text.count(PLACEHOLDER) for _, text in said)) != len(audios):
            advice = f"Every {PLACEHOLDER} needs its path, in order."
            told = f"{len(audios)} audios"
            raise BadData("FAC-I03", "audios that do not fit the messages", where, told, f"{due}", advice)
        sounds = iter([(path, f"{where}, {columns['audios']}[{i}]") for i, path in enumerate(audios)])
        turns = [turn for role, text in said for turn in self._turns(role, text, sounds, where)]
        custom = self.kept(record, {columns["messages"], columns["system"], columns["audios"], "id"})
        return Dialogue(name, tuple(turns), system, custom)

    def _message(self, message: Any, where: str, tags: Mapping[str, str]) -> tuple[str, str]:
        """Role and text."""
        if not isinstance(message, dict):
            raise bad_field(where, message, "an object with a role and a content")
        roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["system_tag"]: "system"}
        role, text = message.get(tags["role_tag"]), message.get(tags["content_tag"])
        if role not in roles:
            rule = f"{', '.join(map(repr, roles))} under {tags['role_tag']!r}"
            advice = "Say what roles are called: --set tags.user_tag=NAME; calls of tools have no place in a dialogue."
            raise BadData("FAC-I04", "unknown role", where, repr(role), rule, advice)
        if not isinstance(text, str) or not text.strip():
            raise bad_field(where, text, f"a text under {tags['content_tag']!r}")
        return roles[role], text

    def _turns(self, role: str, text: str, sounds: Iterator[tuple[Any, str]], where: str) -> list[Turn]:
        """Turns of one message: sound and text in their order, or one where the text is what is said."""
        pieces = re.split(f"({re.escape(PLACEHOLDER)})", text)
        heard = pieces.count(PLACEHOLDER)
        if not heard:
            return [Turn(role, text)]  # type: ignore[arg-type]
        if role == "system":
            raise bad_field(where, text, "a system prompt at the beginning, without sound")
        if role == "assistant" or self.user_text_is_said:
            said = "".join(piece for piece in pieces if piece != PLACEHOLDER).strip()
            if heard > 1:
                raise bad_field(where, text, f"one {PLACEHOLDER} in a message whose text is what is said")
            if role == "assistant" and not said:
                raise bad_field(where, text, f"the text that is said beside {PLACEHOLDER}")
            return [self._spoken(role, said, *next(sounds))]
        made = []
        for piece in pieces:
            if piece == PLACEHOLDER:
                made.append(self._spoken(role, "", *next(sounds)))
            elif piece.strip():
                made.append(Turn("user", piece.strip()))
        return made

    def _spoken(self, role: str, text: str, path: Any, where: str) -> Turn:
        sound = read_sound(self.paths.file(path, where), where, self.options)
        return spoken_turn(role, text, sound, self.options)  # type: ignore[arg-type]
