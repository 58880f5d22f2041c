"""Several families of pairs in one job."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fac_lightning.preferences.base import LoadRun, PairBuilder

__all__ = ["PairFamilies"]


class PairFamilies:
    """Run pair builders one after the other; each leaves its own folder for ``data.train``.

    Families that are there already stay, so an interrupted job goes on with the next.

    Args:
        families: Name -> builder.
        out: Folder of ``summary.json``; the builders' folders best lie in it.
        load_run: Rebuilds trained runs; the command line passes it.
    """

    def __init__(self, families: Mapping[str, PairBuilder], out: str, load_run: LoadRun | None = None) -> None:
        folders = [str(Path(builder.out)) for builder in families.values()]
        if not families or len(set(folders)) < len(folders):
            raise ValueError(f"{len(families)} families write to {folders}; name one or more, each with its own out")
        self.families, self.out, self.load_run = dict(families), Path(out), load_run

    def run(self) -> dict[str, Any]:
        """Summaries of the families, also in ``summary.json``."""
        summaries = {name: builder.run(self.load_run) for name, builder in self.families.items()}
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "summary.json").write_text(json.dumps(summaries, indent=2) + "\n", encoding="utf-8")
        return summaries
