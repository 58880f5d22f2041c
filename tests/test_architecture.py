"""Who may import whom: the table of the house, held by a walk over every import statement."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "fac_lightning"

PARTS = frozenset(
    {"tokenizers", "encoders", "adapters", "backbones", "heads", "detokenizers", "synthesizers", "recognizers"}
)
BASES = frozenset(f"{room}.base" for room in PARTS)
# Files at the root: what crosses borders, and small tools without state.
TOOLS = frozenset(
    {
        "hf_packed",
        "html_page",
        "kaldi_fbank",
        "packed",
        "patterns",
        "prompts",
        "replies",
        "resampling",
        "slot_cache",
        "text_probe",
        "text_tokenizer",
        "types",
        "weights",
        "wer",
    }
)
EVERYTHING = frozenset({"*"})

# Third-party libraries that a room must not know. torchaudio is banned everywhere: its wheels need CUDA libraries.
NOWHERE = frozenset({"torchaudio"})
TRAINING = frozenset({"lightning", "pytorch_lightning", "lhotse", "omegaconf"})


@dataclass(frozen=True)
class Room:
    """What a room may know: of ours (a room, one module ``room.base``, or ``*``) and not of others."""

    ours: frozenset[str]
    never: frozenset[str] = frozenset()
    only: frozenset[str] | None = None  # third-party libraries, when the list is closed


PART = Room(TOOLS, never=TRAINING)
HOUSE: dict[str, Room] = {
    "types": Room(frozenset(), only=frozenset({"torch"})),
    "prompts": Room(frozenset(), only=frozenset()),
    "text_tokenizer": Room(frozenset({"prompts"}), never=TRAINING),
    "text_probe": Room(frozenset({"prompts"}), never=TRAINING | {"transformers"}),
    "packed": Room(frozenset({"types"}), never=TRAINING),
    "slot_cache": Room(frozenset({"packed"}), only=frozenset({"torch"})),
    "hf_packed": Room(frozenset({"packed", "slot_cache"}), never=TRAINING),
    "replies": Room(frozenset({"types"}), never=TRAINING | {"transformers"}),
    "weights": Room(frozenset(), never=TRAINING),
    "html_page": Room(frozenset(), only=frozenset()),
    "resampling": Room(frozenset(), never=TRAINING | {"torch"}),
    "kaldi_fbank": Room(frozenset(), only=frozenset({"torch"})),
    "wer": Room(frozenset(), never=TRAINING | {"torch"}),
    "patterns": Room(frozenset(), only=frozenset()),
    **dict.fromkeys(PARTS, PART),
    # Heads and models select rows and go through the vocabulary in chunks: pure functions of `losses`.
    "heads": Room(TOOLS | {"losses"}, never=TRAINING),
    "losses": Room(frozenset({"types"}), only=frozenset({"torch"})),
    "merging": Room(frozenset({"patterns", "types", "weights"}), never=TRAINING | {"transformers"}),
    "models": Room(TOOLS | BASES | {"losses"}, never=TRAINING),
    "tasks": Room(TOOLS | BASES | {"models", "losses"}, never=frozenset({"lhotse", "omegaconf"})),
    "data": Room(TOOLS | BASES, never=frozenset({"omegaconf"})),
    "callbacks": Room(TOOLS | BASES | {"merging"}, never=frozenset({"lhotse", "omegaconf"})),
    "generation": Room(TOOLS | BASES | {"models"}, never=TRAINING),
    "interop": Room(TOOLS | PARTS | {"models", "generation", "merging"}, never=TRAINING),
    # The judge reads the dialogues it judges with; of `data` it knows the record and its reader alone.
    "evaluation": Room(TOOLS | BASES | {"generation", "data.dialogue"}, never=frozenset({"omegaconf"})),
    # Pairs are made of dialogues and of the model's own answers: the records of `data`, no data module, and talking.
    "preferences": Room(
        TOOLS
        | BASES
        | {
            "generation",
            "data.codes",
            "data.dialogue",
            "data.distortions",
            "data.finished",
            "data.preference_pairs",
            "data.turn_codes",
        },
        never=TRAINING,
    ),
    # Runs built models on tensors without numbers; recipes and devices are for the command line to bring together.
    "estimate": Room(TOOLS | BASES | {"models"}, never=TRAINING | {"transformers"}),
    "serving": Room(TOOLS | BASES | {"generation"}, never=TRAINING),
    # What is timed is everything, each beside plainer ways; only the command line asks for it.
    "bench": Room(EVERYTHING),
    "pipeline": Room(frozenset({"config"}), never=frozenset({"torch", "lightning", "lhotse", "transformers"})),
    "config": Room(frozenset(), only=frozenset({"omegaconf", "yaml"})),
    "cli": Room(EVERYTHING),
    "testing": Room(EVERYTHING - {"cli"}),
}
# The tiny parts and the covering live with the contract kits, which third parties run; the command line shows them.
SHOWS_TESTING = frozenset({("cli", "matrix_command"), ("cli", "matrix_trial")})


def imported(source: str, package: str) -> list[tuple[int, str]]:
    """Line and dotted name of everything a source imports, inside functions too; ``package`` resolves relative ones."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from fac_lightning import heads` names the room in the alias.
            names = [f"{stem}.{alias.name}" for alias in node.names] if stem == "fac_lightning" else [stem]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found += [(node.lineno, str(a.value)) for a in node.args[:1] if isinstance(a, ast.Constant)]
    return found


def violations(path: Path, source: str) -> list[str]:
    """What a file of the package may not import, as ``file:line: reason``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    room = parts[0]
    if room in ("__init__", "__main__"):  # the package itself and `python -m`
        rule = Room(frozenset({"cli"}) if room == "__main__" else frozenset(), only=frozenset())
    elif room in HOUSE:
        rule = HOUSE[room]
    else:
        return [f"{path.relative_to(ROOT)}:1: the house has no room {room!r}; add it to the table with its walls"]
    found = []
    for line, name in imported(source, ".".join(["fac_lightning", *parts[:-1]])):
        top, _, inner = name.partition(".")
        if top == "fac_lightning" and inner.startswith("testing") and parts in SHOWS_TESTING:
            continue
        reason = _ours(room, inner, rule) if top == "fac_lightning" else _theirs(top, rule)
        if reason:
            found.append(f"{path.relative_to(ROOT)}:{line}: {room} may not import {name}: {reason}")
    return found


def _ours(room: str, inner: str, rule: Room) -> str | None:
    target, _, rest = inner.partition(".")
    if target in ("", "__version__", room):
        return None
    if target == "testing":
        return "testing is for the users of parts, no room needs it but `fac matrix`"
    if "*" in rule.ours or target in rule.ours:
        if target == "bench" and room != "cli":
            return "bench is for the command line alone"
        return "nothing but the command line knows cli" if target == "cli" and room != "__main__" else None
    module = f"{target}.{rest.split('.')[0]}" if rest else target
    if module in rule.ours:
        return None
    if f"{target}.base" in rule.ours:
        return f"only the contract fac_lightning.{target}.base, never a concrete part"
    return f"it may know {', '.join(sorted(rule.ours)) or 'nothing of ours'}"


def _theirs(top: str, rule: Room) -> str | None:
    if top in NOWHERE:
        return "its wheels need CUDA libraries and fail on CPU-only machines"
    if top in rule.never:
        return f"{top} belongs to other rooms"
    if rule.only is not None and top not in rule.only and top not in sys.stdlib_module_names:
        return f"only the standard library and {', '.join(sorted(rule.only)) or 'nothing else'}"
    return None


def test_no_import_crosses_a_wall():
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 20
    found = [line for path in files for line in violations(path, path.read_text(encoding="utf-8"))]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("where", "source", "reason"),
    [
        ("types.py", "import numpy", "only the standard library and torch"),
        ("config/check.py", "import re\nimport torch", "check.py:2"),
        ("config/check.py", "from fac_lightning.types import IGNORE", "nothing of ours"),
        ("encoders/mel.py", "from fac_lightning.tokenizers.base import SpeechTokenizer", "it may know"),
        ("encoders/mel.py", "import torchaudio.transforms", "CUDA"),
        ("heads/refined.py", "def f():\n    import lightning", "refined.py:2"),
        ("models/speech_lm.py", "from fac_lightning.heads.refined import RefinedHead", "concrete part"),
        ("models/speech_lm.py", "from fac_lightning.heads import RefinedHead", "concrete part"),
        ("models/speech_lm.py", "from fac_lightning import heads", "concrete part"),
        ("models/speech_lm.py", "from ..heads import RefinedHead", "concrete part"),
        ("models/speech_lm.py", "from ..heads.refined import RefinedHead", "concrete part"),
        ("models/speech_lm.py", "import importlib\nimportlib.import_module('fac_lightning.heads.refined')", "concrete"),
        ("tasks/sft.py", "from fac_lightning.data import DialogueWriter", "it may know"),
        ("data/layout.py", "from fac_lightning.models import SpeechLM", "it may know"),
        ("generation/sampling.py", "import omegaconf", "belongs to other rooms"),
        ("losses/dpo.py", "from fac_lightning.testing import check_head", "no room needs it"),
        ("cli/list_command.py", "from fac_lightning.testing.matrix import PartCatalogue", "no room needs it"),
        ("testing/heads.py", "from fac_lightning.cli import main", "nothing but the command line"),
        ("testing/heads.py", "from fac_lightning.bench import build_model", "for the command line alone"),
        ("bench/train.py", "from fac_lightning.cli import main", "nothing but the command line"),
        ("bench/train.py", "from fac_lightning.testing import tiny_batch", "no room needs it"),
        ("kitchen/sink.py", "import os", "no room 'kitchen'"),
        ("__init__.py", "import torch", "only the standard library"),
    ],
)
def test_a_planted_violation_is_found(where, source, reason):
    found = violations(ROOT / where, source)
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("models/speech_lm.py", "from fac_lightning.heads.base import SpeechHead"),
        ("heads/refined.py", "from fac_lightning.heads.base import SpeechHead\nimport transformers"),
        ("heads/refined.py", "from .base import SpeechHead"),
        ("testing/heads.py", "from fac_lightning.models import SpeechLM"),
        ("cli/matrix_command.py", "from fac_lightning.testing.matrix import PartCatalogue"),
        ("__main__.py", "from fac_lightning.cli import main"),
        ("bench/train.py", "from fac_lightning.tasks import SpeechSFT"),
        ("cli/bench_command.py", "from fac_lightning.bench import run_benchmark"),
        ("tasks/sft.py", "import lightning\nfrom fac_lightning.models import SpeechLM"),
    ],
)
def test_an_open_door_stays_open(where, source):
    assert violations(ROOT / where, source) == []
