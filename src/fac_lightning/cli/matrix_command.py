"""``fac matrix``: which parts go together, tried."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.list_command import parts
from fac_lightning.config import UserError

__all__ = ["main", "missing_parts"]

ROOMS = ("tokenizers", "encoders", "adapters", "heads", "backbones")


def main(words: Sequence[str]) -> int:
    """Try combinations and write the page."""
    made = parser("matrix", "Train, resume, talk to, export and load combinations of parts, at tiny sizes.")
    made.add_argument("--all", action="store_true", help="every pair of parts; else every part once")
    made.add_argument("--with", dest="held", action="append", default=[], metavar="PART",
                      help="only combinations with this part; may be repeated")  # fmt: skip
    made.add_argument(
        "--parts", metavar="FILE", type=Path, help="parts of your own beside the library's: YAML, by slot"
    )
    made.add_argument("--page", metavar="FILE", type=Path, help="write the matrix here, in Markdown")
    made.add_argument("--work", metavar="DIR", type=Path, help="keep results here; a second call tries what is left")
    made.add_argument("--seed", type=int, default=0, help="of the combinations")
    args = made.parse_args(words)
    if args.page is not None and not args.page.parent.is_dir():
        raise UserError(f"--page: there is no folder {args.page.parent}")
    if args.parts is not None and not args.parts.is_file():
        raise UserError(f"--parts: there is no file {args.parts}")
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
        return _try(args, args.work)
    with tempfile.TemporaryDirectory(prefix="fac-matrix-") as folder:
        return _try(args, Path(folder))


def _try(args: Any, folder: Path) -> int:
    from rich.console import Console
    from rich.progress import track

    from fac_lightning.cli.matrix_trial import MatrixTrials
    from fac_lightning.testing.covering import cover_choices, cover_pairs
    from fac_lightning.testing.matrix import PartCatalogue, TrialResult, matrix_page, refused_pairs

    console, screen = Console(), Console(stderr=True)
    catalogue = PartCatalogue.load(args.parts)
    missing = missing_parts(catalogue)
    if missing:
        raise UserError(f"parts without tiny settings in testing/matrix.yaml: {', '.join(missing)}")
    trials = MatrixTrials(catalogue, folder)
    results = folder / "results.jsonl"
    with _quiet(folder / "log.txt"):
        trials.prepare()
        absent = trials.missing()
        catalogue = trials.catalogue
    for part, reason in absent.items():
        console.print(f"left out: {part}: {reason}", markup=False, soft_wrap=True)
    choices = _held(catalogue.choices(), args.held)
    with _quiet(folder / "log.txt"):
        first = {slot: names[0] for slot, names in catalogue.choices().items()}
        impossible = refused_pairs(choices, trials.refusal, first)
    found = (cover_pairs if args.all else cover_choices)(choices, lambda pair: pair not in impossible, args.seed)
    known = [one for one in TrialResult.load(results) if one.chosen in found]
    left = [chosen for chosen in found if chosen not in [one.chosen for one in known]]
    console.print(
        f"{len(found)} combinations of {sum(map(len, choices.values()))} parts, {len(impossible)} pairs refused"
        + (f", {len(known)} tried before" if known else "")
    )
    for number, chosen in enumerate(track(left, "combinations", console=screen, disable=not screen.is_terminal)):
        with _quiet(folder / "log.txt"):
            result = trials.run(chosen, number)
        result.save(results)
        known.append(result)
        if result.outcome != "green":
            console.print(f"{result.outcome}: {', '.join(chosen.values())}: {result.reason}", markup=False)
    command = "fac matrix" + (" --all" if args.all else "") + (f" --parts {args.parts}" if args.parts else "")
    command += "".join(f" --with {part}" for part in args.held)
    page = matrix_page(choices, impossible, known, command, catalogue.left_out)
    if args.page is not None:
        args.page.write_text(page.text, encoding="utf-8")
        console.print(f"page: {args.page}")
    green, red = (sum(one.outcome == outcome for one in known) for outcome in ("green", "red"))
    console.print(
        f"{green} green, {red} red, {sum(one.seconds for one in known):.0f} s; {page.counts['green']} pairs work, "
        f"{page.counts['refused']} are impossible, {page.counts['untried']} not tried"
    )
    return 1 if red else 0


def missing_parts(catalogue: Any) -> list[str]:
    """Public parts that ``fac list`` shows and the catalogue neither combines nor leaves out with a reason."""
    listed = [path for room in ROOMS for path, definition in parts(room) if not definition.abstract]
    return [path for path in listed if path not in catalogue.targets() and path not in catalogue.left_out]


def _held(choices: dict[str, list[str]], held: Sequence[str]) -> dict[str, list[str]]:
    """Choices in which a slot with a named part has no other."""
    names = {part: slot for slot, found in choices.items() for part in found}
    for part in held:
        if part not in names:
            raise UserError(f"--with: there is no part {part!r}; choose from {', '.join(names)}")
        choices = {**choices, names[part]: [part]}
    return choices


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """What trainings say goes to a file; what they note, such as their parts' sizes, nowhere."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
            yield
    finally:
        logging.disable(before)
