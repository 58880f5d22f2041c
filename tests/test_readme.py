"""Every block of the README and of the documentation runs: Python as it stands, shell commands where they are cheap.

Blocks of one page share one namespace and run in order. Of the shell, ``make`` targets are resolved by ``make -n``,
reading commands of ``fac`` run, working ones are checked (`fac check` builds nothing and finds every mistake).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
EXAMPLE = REPO / "examples" / "my_speech_part"  # a package of a user's own; docs/extending.md shows it
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", EXAMPLE / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READING = {"check", "list", "show", "doctor", "--version", "--help"}
WORKING = {"run", "fit"}


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """Line of the first line and text of each fenced block in one of the languages."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start(2)].count("\n") + 1, m.group(2)) for m in FENCE.finditer(text) if m.group(1) in languages]


def commands(page: Path) -> list[tuple[int, str]]:
    """Shell commands, continuation lines joined, comments left out."""
    found = []
    for line, text in blocks(page, "bash"):
        joined = text.replace("\\\n", " ")
        found += [(line, c) for raw in joined.splitlines() if (c := re.sub(r"\s+#.*$|^#.*$", "", raw).strip())]
    return found


def label(value: object) -> str | None:
    return str(value.relative_to(REPO)) if isinstance(value, Path) else None


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
WITH_SHELL = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=label)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE / "src")
    namespace: dict[str, object] = {"__name__": "__page__"}
    for line, text in blocks(page, "python"):
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", WITH_SHELL, ids=label)
def test_shell_blocks_are_real(page):
    for line, command in commands(page):
        where = f"{page.relative_to(REPO)}:{line}: {command}"
        words = shlex.split(command)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # NAME=value before a command
            words = words[1:]
        words[0] = words[0].removeprefix(".venv/bin/")
        match words:
            case ["make", *rest]:
                done = subprocess.run(["make", "-n", *rest, "PYTHON=python3"], cwd=REPO, capture_output=True, text=True)
                if run := re.search(r"fac run (.+)", done.stdout):
                    done = fac("check", *shlex.split(run[1]))
            case ["fac", verb, *rest] if verb in READING:
                done = fac(verb, *rest)
            case ["fac", "run", recipe, *rest] if any(word.startswith("--") for word in rest):
                # a dry run of the same stages from the start: others need what is not done here
                rest = ["--until" if word in ("--from", "--only") else word for word in rest if word != "--dry-run"]
                done = fac("run", recipe, "--dry-run", *rest)
            case ["fac", verb, recipe, *rest] if verb in WORKING:
                done = fac("check", recipe, *rest)
            case ["fac", verb, *_]:
                done = fac(verb, "--help")
            case ["python", script, *_] if script.endswith(".py"):
                assert (REPO / script).is_file(), where
                continue
            case ["git" | "cd" | "pip" | "pytest" | "ruff" | "mypy" | "mkdocs", *_]:
                continue
            case _:
                pytest.fail(f"{where}: teach this test what the command is")
        assert done.returncode == 0, f"{where}\n{done.stdout}\n{done.stderr}"


def fac(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a fresh process, from the root of the clone."""
    command = [sys.executable, "-m", "fac_lightning", *arguments]
    installed = {**os.environ, "PYTHONPATH": str(EXAMPLE / "src")}
    return subprocess.run(command, cwd=REPO, env=installed, capture_output=True, text=True, timeout=120)


def test_readme_shows_both_commands():
    shown = [command for _, command in commands(REPO / "README.md")]
    assert "make quickstart" in shown
    assert "make test" in shown


def test_links_inside_the_house_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPO)}: {target}")
    assert not broken, "\n".join(broken)
