"""Every public name imports, says what it is, and has its page in the documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
PACKAGE = REPO / "src" / "fac_lightning"
ROOMS = sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))
ROOT_FILES = sorted(p.stem for p in PACKAGE.glob("[a-z]*.py"))


def exported(path: Path) -> list[str]:
    """The names of ``__all__``, read without importing."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            return list(ast.literal_eval(node.value))
    return []


def rank(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions, each by name: the order that ruff keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("room", ROOMS)
def test_room_is_public(room):
    names = exported(PACKAGE / room / "__init__.py")
    assert names == sorted(names, key=rank)
    module = importlib.import_module(f"fac_lightning.{room}")
    assert module.__doc__, f"fac_lightning.{room} has no docstring"
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"fac_lightning.{room}.__all__ names {missing}, which do not import"
    silent = [
        name
        for name in names
        if (inspect.isclass(obj := getattr(module, name)) or inspect.isroutine(obj)) and not obj.__doc__
    ]
    assert not silent, f"fac_lightning.{room}: no docstring on {silent}"


@pytest.mark.parametrize("room", ROOMS)
def test_room_reexports_by_plain_imports(room):
    """`fac check` reads these lines without running them."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    imports = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert set(exported(PACKAGE / room / "__init__.py")) <= imports | defined


@pytest.mark.parametrize("room", ROOMS)
def test_room_has_its_page(room):
    page = REPO / "docs" / "api" / f"{room}.md"
    assert page.is_file(), f"docs/api/{room}.md is missing"
    assert f"::: fac_lightning.{room}\n" in page.read_text(encoding="utf-8") + "\n"
    assert f"api/{room}.md" in (REPO / "mkdocs.yml").read_text(encoding="utf-8")


def test_root_files_have_their_page():
    page = (REPO / "docs" / "api" / "types.md").read_text(encoding="utf-8")
    missing = [name for name in ROOT_FILES if f"::: fac_lightning.{name}\n" not in page]
    assert not missing, f"docs/api/types.md does not show {missing}"


def test_no_page_for_a_room_that_is_gone():
    pages = {p.stem for p in (REPO / "docs" / "api").glob("*.md")}
    assert pages == {*ROOMS, "types"}


def test_import_is_light():
    """Half a second at most, and nothing heavy before it is needed."""
    code = (
        "import sys, time; start = time.perf_counter(); import fac_lightning; print(time.perf_counter() - start);"
        "print(*sorted({'torch', 'transformers', 'lhotse', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stdout.split("\n")[:2]
    assert float(seconds) < 0.5
    assert heavy == ""
