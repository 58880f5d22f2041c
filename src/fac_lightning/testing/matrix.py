"""The swap matrix: which parts are combined, at tiny sizes, and what became of each pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from fac_lightning.testing.covering import Choice, Combination, Pair, all_pairs
from fac_lightning.testing.encoder_kinds import ENCODER_KINDS
from fac_lightning.testing.families import BACKBONE_FAMILIES, family_config

__all__ = ["SLOTS", "MatrixPage", "PartCatalogue", "TrialResult", "matrix_page", "refused_pairs"]

#: ``green`` did all that was asked, ``red`` failed, ``refused`` a part says in one line that it cannot
Outcome = Literal["green", "red", "refused"]

SLOTS = ("tokenizer", "encoder", "feature_adapter", "code_adapter", "fusion", "head", "backbone")
VOCABULARY = 400  # rows of the tiny language models; the tokenizer that trials train has fewer ids
CATALOGUE = Path(__file__).with_name("matrix.yaml")


@dataclass(frozen=True)
class PartCatalogue:
    """Parts at tiny sizes, by slot and name, and the recipe that they are put into."""

    recipe: dict[str, Any]
    slots: dict[str, dict[str, dict[str, Any]]]  # slot -> name -> node, with ${vars...}
    left_out: dict[str, str]  # dotted path -> why it is not combined
    positions_per_second: float

    @classmethod
    def load(cls, added: str | Path | None = None) -> PartCatalogue:
        """The library's own catalogue, with the parts of a file behind those of their slot.

        Args:
            added: YAML file: slot -> name -> node, with ``${vars...}`` for the sizes that a combination decides.

        Raises:
            ValueError: The file names no slot, no part, or a part that the library has.
        """
        tree: Any = OmegaConf.to_container(OmegaConf.load(CATALOGUE), resolve=False)
        _add_own_kinds(tree["slots"], int(tree["recipe"]["vars"]["dim"]))
        if added is not None:
            _add_parts(tree["slots"], Path(added))
        return cls(tree["recipe"], tree["slots"], tree["left_out"], tree["positions_per_second"])

    def choices(self) -> dict[str, list[str]]:
        """Names of the parts by slot."""
        return {slot: list(self.slots[slot]) for slot in SLOTS}

    def without(self, gone: Mapping[str, str]) -> PartCatalogue:
        """A catalogue without some parts.

        Args:
            gone: Name of a part -> why it cannot be tried here.
        """
        slots = {
            slot: {name: node for name, node in parts.items() if name not in gone} for slot, parts in self.slots.items()
        }
        return replace(self, slots=slots, left_out={**self.left_out, **gone})

    def targets(self) -> set[str]:
        """Dotted paths of all parts, those inside others too."""

        def walk(node: Any) -> Iterable[str]:
            if isinstance(node, Mapping):
                if "_target_" in node:
                    yield str(node["_target_"])
                for value in node.values():
                    yield from walk(value)
            elif isinstance(node, list):
                for value in node:
                    yield from walk(value)

        return set(walk(self.slots))

    def resolve(self, slot: str, name: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """The node of a part; ``sizes`` is what it needs of ``vars``."""
        tree = OmegaConf.create({"node": self.slots[slot][name], "vars": {**self.recipe.get("vars", {}), **sizes}})
        node: Any = OmegaConf.to_container(tree.node, resolve=True)
        return dict(node)

    def compose(self, chosen: Combination, sizes: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe of a combination.

        Args:
            chosen: Part per slot.
            sizes: Values of ``vars`` that come from tokenizer and encoder.
            extra: Laid over the recipe: where data and run folder are.
        """
        parts = {slot: self.slots[slot][name] for slot, name in chosen.items()}
        tree = OmegaConf.create(
            {
                "tokenizer": parts.pop("tokenizer"),
                "model": parts,
                "vars": {**self.recipe.get("vars", {}), **sizes},
            }
        )
        whole = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(self.recipe), tree, extra), resolve=True)
        assert isinstance(whole, dict)
        return {str(name): value for name, value in whole.items()}


def _add_own_kinds(slots: dict[str, dict[str, Any]], dim: int) -> None:
    """Kinds of encoders and families of backbones that have tiny settings already; mel and Qwen3 come first."""
    encoders = {name: {"_target_": path, **arguments} for name, (path, arguments) in ENCODER_KINDS.items()}
    families = {
        name: {"_target_": "fac_lightning.backbones.HFBackbone", "config": family_config(name, VOCABULARY, dim)}
        for name in BACKBONE_FAMILIES
    }
    slots["encoder"] = {"mel": encoders.pop("mel"), **encoders, **slots["encoder"]}
    slots["backbone"] = {"qwen3": families.pop("qwen3"), **families, **slots["backbone"]}


def _add_parts(slots: dict[str, dict[str, Any]], file: Path) -> None:
    given: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"{file} must name parts by slot: {', '.join(SLOTS)}")
    for slot, parts in given.items():
        if slot not in SLOTS:
            raise ValueError(f"{file}: there is no slot {slot!r}; slots are {', '.join(SLOTS)}")
        if not isinstance(parts, Mapping) or not all("_target_" in (node or {}) for node in parts.values()):
            raise ValueError(f"{file}: {slot} must name parts, each a node with _target_ and its arguments")
        known = {name: place for place, names in slots.items() for name in names}
        taken = [name for name in parts if name in known]
        if taken:
            raise ValueError(
                f"{file}: the library has a part {taken[0]!r} ({known[taken[0]]}); give yours another name"
            )
        slots[slot] = {**slots[slot], **parts}


@dataclass(frozen=True)
class TrialResult:
    """What became of one combination."""

    chosen: Combination
    outcome: Outcome
    reason: str = ""  # of what was refused or failed
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # of every step
    modes: list[str] = field(default_factory=list)  # in which it answered

    def save(self, path: Path) -> None:
        """Append to a file of one result a line."""
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(self)) + "\n")

    @staticmethod
    def load(path: Path) -> list[TrialResult]:
        """All results of a file; none where there is no file."""
        if not path.is_file():
            return []
        return [TrialResult(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line]


@dataclass(frozen=True)
class MatrixPage:
    """The matrix in Markdown, and what it counts."""

    text: str
    counts: dict[str, int]  # cells by outcome, and "untried"


def matrix_page(
    choices: Mapping[str, Sequence[str]],
    impossible: Mapping[Pair, str],
    trials: Sequence[TrialResult],
    command: str,
    left_out: Mapping[str, str] | None = None,
) -> MatrixPage:
    """What became of every pair of parts.

    A pair is green where a combination with both did all that was asked, and red where none did and one failed. A red
    combination is listed even when all its pairs are green elsewhere.

    Args:
        choices: Parts by slot.
        impossible: Pairs of which one part refuses the other, and its words.
        trials: Of combinations.
        command: That made this.
        left_out: Parts that are not combined, and why.
    """
    cells = _cells(choices, impossible, trials)
    counts = {name: sum(cell == name for cell in cells.values()) for name in ("green", "red", "refused", "untried")}
    failed = [trial for trial in trials if trial.outcome != "green"]
    lines = [
        "# Which parts go together",
        "",
        f"Made by `{command}`. Each combination trains 3 steps with a falling loss, goes on from its second step to",
        "the same weights bit for bit, answers in every mode, and is moved, exported and loaded again. A cell says",
        "what became of a pair of parts, each at tiny sizes with random weights:",
        "",
        "● works, ✕ fails, ○ one refuses the other (reasons below), · not tried in this run.",
        "",
        f"{len(trials)} combinations: {sum(t.outcome == 'green' for t in trials)} green, "
        f"{sum(t.outcome == 'red' for t in trials)} red, {sum(t.outcome == 'refused' for t in trials)} refused. "
        f"{len(cells)} pairs: {counts['green']} work, {counts['red']} fail, {counts['refused']} are impossible, "
        f"{counts['untried']} were not tried.",
        "",
        *_tables(choices, cells),
        "## Refused",
        "",
        *(_refusals(impossible) or ["Nothing."]),
        "",
    ]
    if failed:
        lines += ["## Combinations that did not go", ""]
        lines += [f"- {_title(trial.chosen)}: {trial.outcome}: {trial.reason}" for trial in failed] + [""]
    if left_out:
        lines += ["## Not combined", ""]
        lines += [f"- `{path}`: {why}" for path, why in sorted(left_out.items())] + [""]
    return MatrixPage("\n".join(lines), counts)


def _cells(
    choices: Mapping[str, Sequence[str]], impossible: Mapping[Pair, str], trials: Sequence[TrialResult]
) -> dict[Pair, str]:
    cells = {pair: "refused" if pair in impossible else "untried" for pair in all_pairs(choices)}
    for wanted in ("refused", "red", "green"):  # the later ones are stronger
        for trial in trials:
            if trial.outcome == wanted:
                ordered = [(slot, trial.chosen[slot]) for slot in choices]
                cells.update({pair: wanted for pair in combinations(ordered, 2) if pair in cells})
    return cells


def _tables(choices: Mapping[str, Sequence[str]], cells: Mapping[Pair, str]) -> list[str]:
    marks = {"green": "●", "red": "✕", "refused": "○", "untried": "·"}
    lines: list[str] = []
    for one, two in combinations(choices, 2):
        rows, columns = (one, two) if len(choices[one]) >= len(choices[two]) else (two, one)

        def mark(row: Choice, column: Choice) -> str:
            return marks[cells[(row, column) if (row, column) in cells else (column, row)]]

        lines += [f"## {_words(rows)} and {_words(columns)}", "", f"| | {' | '.join(choices[columns])} |"]
        lines += ["|---" * (len(choices[columns]) + 1) + "|"]
        for row in choices[rows]:
            found = " | ".join(mark((rows, row), (columns, column)) for column in choices[columns])
            lines.append(f"| {row} | {found} |")
        lines.append("")
    return lines


def _refusals(impossible: Mapping[Pair, str]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for (one, two), reason in impossible.items():
        by_reason.setdefault(reason, []).append(f"{one[1]} with {two[1]}")
    return [f"- {'; '.join(pairs)}: {reason}" for reason, pairs in by_reason.items()]


def _title(chosen: Combination) -> str:
    return ", ".join(chosen.values())


def _words(slot: str) -> str:
    return slot.replace("_", " ")


def refused_pairs(
    choices: Mapping[str, Sequence[str]],
    build: Callable[[Combination], str | None],
    beside: Combination | None = None,
) -> dict[Pair, str]:
    """Pairs of which one part refuses the other, found by building each beside parts that go with all.

    Args:
        choices: Parts by slot.
        build: Builds a combination; gives the words of a refusal, or None where it can be built.
        beside: Part of every slot that goes with all others; the first ones when None.

    Raises:
        ValueError: Such a part refuses another.
    """
    first = beside or {slot: parts[0] for slot, parts in choices.items()}
    for slot, parts in choices.items():
        for part in parts:
            if (reason := build({**first, slot: part})) is not None:
                raise ValueError(
                    f"{part} does not go with the first part of every other slot ({reason}); put others first"
                )
    found = {pair: build({**first, **dict(pair)}) for pair in all_pairs(choices)}
    return {pair: reason for pair, reason in found.items() if reason is not None}
