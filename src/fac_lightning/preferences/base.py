"""The contract of pair builders: jobs that leave a folder of preference pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar

from fac_lightning.preferences.folder import PairFolder

__all__ = ["LoadRun", "PairBuilder", "described"]

#: rebuilds a trained run from its folder; the command line passes ``fac_lightning.cli.build.load_run``
LoadRun = Callable[[str], Any]


class PairBuilder(ABC):
    """A job that writes preference pairs of one family.

    The folder holds all that its pairs name: prompts, answers, who ranked them and by how much, ``summary.json``. It
    is there whole or not at all, and calling ``run`` again with the same arguments changes nothing.
    """

    measure: ClassVar[str]  # what ranks the answers
    out: str  # folder to write
    task: str  # family of the pairs

    def run(self, load_run: LoadRun | None = None) -> dict[str, Any]:
        """Write the pairs that are not there yet; returns the summary.

        Args:
            load_run: Rebuilds trained runs, where the builder was not given it.

        Raises:
            ValueError: The folder holds something else, or was made with other arguments.
        """
        folder = PairFolder(self.out, self.task, self.measure, described(self))
        done = folder.finished()
        if done is not None:
            return done
        with folder:
            self.build(folder, getattr(self, "load_run", None) or load_run)
        return folder.summary()

    @abstractmethod
    def build(self, folder: PairFolder, load_run: LoadRun | None) -> None:
        """Write every pair to ``folder``, and say what was left out."""


def described(part: Any) -> Any:
    """What a part was made with, as JSON values: its arguments, and what its parts were made with."""
    if isinstance(part, str | int | float | bool | None):
        return part
    if isinstance(part, list | tuple):
        return [described(item) for item in part]
    if isinstance(part, dict):
        return {str(name): described(item) for name, item in part.items()}
    if is_dataclass(part):
        names = [f.name for f in fields(part) if f.init]
    else:
        names = [n for n, v in vars(part).items() if isinstance(v, str | int | float | bool | None)]
    kept = {name: described(getattr(part, name)) for name in names if name != "load_run" and not name.startswith("_")}
    return {"class": type(part).__name__, **kept}
