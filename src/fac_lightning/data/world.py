"""A closed world of spoken question answering: small enough to be learned on a laptop, every answer checkable."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fac_lightning.data.dialogue import Dialogue, Turn
from fac_lightning.data.sources import DialogueSource
from fac_lightning.data.world_facts import RELATIONS

__all__ = ["Fact", "Question", "World"]

#: Words that carry nothing in a question of the world.
_FILLERS = frozenset({
    "a", "an", "the", "is", "are", "of", "in", "on", "to", "do", "does", "what", "which", "who", "tell", "me",
    "can", "could", "you", "i", "want", "know", "please", "it", "that", "for",
})  # fmt: skip
_OPENINGS = ("Please help me.", "One more question.", "Listen.", "Hello.", "Quick question.", "Thank you.")


@dataclass(frozen=True)
class Fact:
    """One thing that is true."""

    id: str  # for example "capital-france"
    relation: str
    entity: str
    answer: str  # complete sentence


class Question(NamedTuple):
    """One way to ask for a fact."""

    fact: Fact
    wording: int  # index of the wording in its split
    text: str


class World(DialogueSource):
    """Facts about countries, words, animals, numbers and things, each asked in several wordings.

    Args:
        seed: Order of the facts.
        relations: Names of the relations to keep; all by default.
        num_facts: Keep this many facts, after ordering; all by default.
    """

    def __init__(self, seed: int = 0, relations: Sequence[str] | None = None, num_facts: int | None = None) -> None:
        names = [relation.name for relation in RELATIONS]
        unknown = sorted(set(relations or ()) - set(names))
        if unknown:
            raise ValueError(f"unknown relations {', '.join(unknown)}; choose from {', '.join(names)}")
        self._relations = {r.name: r for r in RELATIONS if relations is None or r.name in relations}
        facts = [
            Fact(f"{r.name}-{_slug(x)}", r.name, x, _sentence(r.answer.format(x=x, y=y)))
            for r in self._relations.values()
            for x, y in r.pairs.items()
        ]
        random.Random(seed).shuffle(facts)
        if num_facts is not None and not 1 <= num_facts <= len(facts):
            raise ValueError(f"num_facts must be between 1 and {len(facts)}, got {num_facts}")
        self.facts: list[Fact] = facts[:num_facts]

    def questions(self, split: Literal["train", "unseen"]) -> list[Question]:
        """Every fact in every wording of a split, fact after fact; the splits share no wording."""
        if split not in ("train", "unseen"):
            raise ValueError(f"split must be 'train' or 'unseen', got {split!r}")
        return [
            Question(fact, wording, _sentence(template.format(x=fact.entity)))
            for fact in self.facts
            for wording, template in enumerate(getattr(self._relations[fact.relation], split))
        ]

    def paraphrases(self) -> list[Question]:
        """The training wordings, and for each its keywords, forwards and backwards, and a longer form.

        No unseen wording is among them.

        A text LLM knows many ways to ask before it learns to listen; these are its ways in the small world.
        """
        found: dict[tuple[str, str], Question] = {}
        for question in self.questions("train"):
            words = [w for w in re.findall(r"[\w']+", question.text) if w.lower() not in _FILLERS]
            opening = _OPENINGS[question.wording % len(_OPENINGS)]
            keywords = _sentence(" ".join(words)) + "?", _sentence(", ".join(words[::-1])) + "?"
            for text in (question.text, *keywords, f"{opening} {question.text}"):
                found.setdefault((question.fact.id, text), question._replace(text=text))
        return [question._replace(wording=index) for index, question in enumerate(found.values())]

    def dialogues(self, select: str) -> list[Dialogue]:
        """Questions of the split ``select`` as dialogues of two turns, text only.

        ``"train"`` and ``"unseen"`` are wordings, ``"text"`` the paraphrases.
        """
        return [
            Dialogue(
                f"{question.fact.id}-{select}{question.wording}",
                (Turn("user", question.text), Turn("assistant", question.fact.answer)),
                custom={"fact": question.fact.id, "relation": question.fact.relation, "wording": question.wording},
            )
            for question in (self.paraphrases() if select == "text" else self.questions(select))  # type: ignore[arg-type]
        ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _slug(entity: str) -> str:
    return re.sub(r"^(a|an|the) ", "", entity).lower().replace(" ", "-")
