"""The house around the code: licence, versions, constraints, what ships, and what must never be committed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import fac_lightning

REPO = Path(__file__).parents[1]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """Files under version control, or, in an unpacked archive, those that would be."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return [p for name in done.stdout.split("\0") if name and (p := REPO / name).is_file()]
    skip = {".venv", "runs", "site", "build", "dist", ".git", "__pycache__"}
    return [p for p in REPO.rglob("*") if p.is_file() and not skip & set(p.relative_to(REPO).parts)]


def name_of(requirement: str) -> str:
    """Normalised package name of a requirement or a constraint line."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s\[<>=!~;]", requirement.strip(), maxsplit=1)[0]).lower()


def constraints() -> dict[str, str]:
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {name_of(x): x.partition("==")[2] for x in lines if x and not x.startswith("#")}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0]))


def satisfies(version: str, specifier: str) -> bool:
    """Whether a pinned version lies in a plain range such as ``>=2.5,!=2.6.2,<3``."""
    have = numbers(version)
    for clause in filter(None, specifier.replace(" ", "").split(",")):
        operator, bound = re.match(r"(==|!=|>=|<=|<|>)(.+)", clause).groups()
        want = numbers(bound)
        width = max(len(have), len(want))
        a, b = have + (0,) * (width - len(have)), want + (0,) * (width - len(want))
        if not {"==": a == b, "!=": a != b, ">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b}[operator]:
            return False
    return True


def test_version_has_one_source():
    assert "version" in PROJECT["project"]["dynamic"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/fac_lightning/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", fac_lightning.__version__)
    assert f"[{fac_lightning.__version__}]" in (REPO / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_requirement_is_pinned_inside_its_range():
    pins = constraints()
    extras = [r for extra in PROJECT["project"]["optional-dependencies"].values() for r in extra]
    for requirement in [*PROJECT["project"]["dependencies"], *extras]:
        name = name_of(requirement)
        assert name in pins, f"constraints.txt does not pin {name}"
        specifier = re.sub(r"^[\w.\-]+(\[[\w,]+\])?", "", requirement)
        assert satisfies(pins[name], specifier), f"{name}=={pins[name]} is outside {specifier}"


def test_constraints_hold_one_exact_version_each():
    lines = (REPO / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9\-]+==[0-9][\w.]*", line) for line in lines)  # no hosts, no local versions
    assert len({name_of(line) for line in lines}) == len(lines)


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("2.13.0", ">=2.11", True),
        ("2.6.2", ">=2.5,!=2.6.2", False),
        ("2.0", ">=1.33,<2", False),
        ("1.8.0", "==1.8.0", True),
    ],
)
def test_satisfies_reads_ranges(version, specifier, expected):
    assert satisfies(version, specifier) is expected


def test_what_ships():
    assert (REPO / "src" / "fac_lightning" / "py.typed").is_file()
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["src/fac_lightning"]
    assert wheel["force-include"] == {"recipes": "fac_lightning/recipes"}
    assert PROJECT["project"]["scripts"]["fac"] == "fac_lightning.cli:main"
    weights = [p for p in tracked() if p.suffix == ".safetensors"]
    assert sum(p.stat().st_size for p in weights) <= 12_000_000
    assert all(p.is_relative_to(REPO / "src" / "fac_lightning") for p in weights)


def test_licence_is_apache_2():
    text = (REPO / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert text.rstrip().endswith("limitations under the License.")
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_ci_runs_exactly_make_test():
    script = REPO / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is not executable"
    commands = [
        x for x in script.read_text(encoding="utf-8").splitlines() if x and not x.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["exec make test </dev/null"]


@pytest.mark.parametrize("target", ["quickstart", "test", "lint", "docs"])
def test_make_target_exists(target):
    done = subprocess.run(["make", "-n", target, "PYTHON=python3"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Spelled in pieces, so that this file does not find itself.
FORBIDDEN = {
    "a path of one machine": re.compile(r"(?<![\w.])/(?:work|root|home/\w+|Users/\w+)/"),
    "a package registry's address": re.compile(
        r"(?:--index-url|--extra-index-url|index-url\s*=|pythonhosted\.org|//pypi\.org/simple)"
    ),
    "an unresolved merge": re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE),
}


def test_tracked_files_are_clean():
    found = []
    for path in tracked():
        if path == Path(__file__) or path.suffix in {".safetensors", ".flac", ".wav", ".png"}:
            continue
        text = path.read_text(encoding="utf-8")
        for what, pattern in FORBIDDEN.items():
            found += [f"{path.relative_to(REPO)}: {what}: {m.group()}" for m in pattern.finditer(text)]
        if path.stat().st_size > 500_000:
            found.append(f"{path.relative_to(REPO)}: {path.stat().st_size} bytes of text")
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("text", ["see /work/x.wav", "open('/root/.cache')", "pip install --index-url https://x"])
def test_a_planted_path_is_found(text):
    assert any(pattern.search(text) for pattern in FORBIDDEN.values())
