"""What source text tells of a dotted path is what Python itself would tell after importing it."""

from __future__ import annotations

import inspect

import pytest

from fac_lightning.config import BadPath, define, find, locate
from fac_lightning.config.annotations import choices, fits

REAL = [
    "torch.optim.AdamW",
    "torch.optim.lr_scheduler.CosineAnnealingLR",
    "torch.nn.Linear",
    "torch.nn.GELU",
    "lightning.Trainer",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.callbacks.LearningRateMonitor",
    "lightning.pytorch.loggers.CSVLogger",
    "fac_lightning.types.SpeechGeometry",
    "fac_lightning.models.SpeechLM",
    "fac_lightning.backbones.HFBackbone",
    "recipe_parts.Model",
    "recipe_parts.Inherits",
    "recipe_parts.Wider",
    "recipe_parts.Data.small",
    "recipe_parts.needs_keyword",
]


@pytest.mark.parametrize("path", REAL)
def test_source_tells_what_an_import_tells(path):
    signature = inspect.signature(locate(path))
    parameters = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    definition = find(path)
    assert definition.names == [p.name for p in parameters]
    assert [a.default is None for a in definition.arguments] == [p.default is p.empty for p in parameters]
    assert definition.open == any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def test_a_module_without_constructor_takes_nothing():
    assert find("recipe_parts.Silent").arguments == ()
    assert not find("recipe_parts.Silent").open


def test_the_definition_says_where_it_stands():
    assert find("torch.optim.AdamW").path == "torch.optim.adamw.AdamW"
    assert find("fac_lightning.heads.RefinedHead").path == "fac_lightning.heads.refined.RefinedHead"


def test_what_source_cannot_tell_is_imported():
    assert define("math.isclose").names == ["a", "b", "rel_tol", "abs_tol"]
    assert define("builtins.dict").open


def test_imports_are_followed_in_all_their_forms(tmp_path, monkeypatch):
    package = tmp_path / "followed"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from . import deep\n"
        "from .deep.core import Core as Renamed\n"
        "from .deep.core import *\n"
        "try:\n    from nowhere_at_all import Maybe\nexcept ImportError:\n    from .deep.core import Core as Maybe\n"
        "Alias = Renamed\n"
        "if TYPE_CHECKING:\n    from .deep.core import Hidden\n"
    )
    (package / "deep" / "__init__.py").write_text("from followed.deep import core\n")
    (package / "deep" / "core.py").write_text(
        "import functools\n"
        "from typing import Generic, TypeVar, overload\n"
        "T = TypeVar('T')\n"
        "def wrap(f):\n    @functools.wraps(f)\n    def g(*a, **k):\n        return f(*a, **k)\n    return g\n"
        "class Core(Generic[T]):\n"
        "    @overload\n    def __init__(self, a: int) -> None: ...\n"
        "    @wrap\n    def __init__(self, a: int, *, b: str = 'x') -> None: ...\n"
        "class Hidden(Core[int]):\n    @staticmethod\n    def make(c: float) -> None: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("Renamed", "Core", "Alias", "Hidden", "deep.core.Core", "deep.Hidden".replace("deep.", "deep.core.")):
        assert find(f"followed.{name}").names == ["a", "b"], name
    assert find("followed.Hidden.make").names == ["c"]
    with pytest.raises(BadPath, match=r"followed\.deep\.core has no 'Cora'\. Did you mean 'Core'\?"):
        find("followed.deep.core.Cora")


def test_a_part_in_the_working_folder_says_how_to_reach_it(tmp_path, monkeypatch):
    (tmp_path / "my_own_part.py").write_text("class Part:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry not in ("", str(tmp_path))])
    with pytest.raises(BadPath, match=r"Start with 'python -m fac_lightning \.\.\.' instead of 'fac \.\.\.'"):
        find("my_own_part.Part")


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, "int", True),
        (True, "int", False),
        (1, "float", True),
        ("x", "float", False),
        (None, "int | None", True),
        (None, "Optional[int]", True),
        (None, "int", False),
        ("x", "typing.Union[int, 'str']", True),
        ([1, 2], "list[int]", True),
        ([1, "x"], "list[int]", False),
        ("ab", "list[str]", False),
        ([0.9, 0.99], "tuple[float, float]", True),
        ([1], "tuple[int, ...]", True),
        ({"a": 1}, "dict[str, float]", True),
        ({"a": "x"}, "dict[str, float]", False),
        ([1], "dict[str, int] | None", False),
        ("mean", "Literal['mean', 'sum']", True),
        (1, "Literal[True]", False),
        ({"_target_": "x.Y"}, "int", True),
        ("anything", "SpeechHead", True),
        ("anything", "", True),
    ],
)
def test_values_fit_annotations(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_choices_are_those_of_the_literal():
    assert choices("Literal['a', 'b'] | None") == ["a", "b"]
