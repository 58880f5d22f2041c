"""What a run was given: rows of each source, and those that could not be read; too many stop the run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

from fac_lightning.data.errors import BadData
from fac_lightning.types import SpeechTextBatch

__all__ = ["StreamTally"]

log = logging.getLogger(__name__)

MIN_ROWS = 100  # seen before a share of bad ones says something
MAX_TOLD = 10  # bad rows that are told one by one


class StreamTally:
    """Counts the rows of the lines that one process was given.

    Args:
        max_bad_share: Share of rows that may be bad, once ``MIN_ROWS`` were seen.
        tags: The sources, each with further names to count its rows under.
    """

    def __init__(self, max_bad_share: float = 0.01, tags: Mapping[str, Sequence[str]] | None = None) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share must lie between 0 and 1, got {max_bad_share}; it is a share of all rows")
        self.max_bad_share, self.tags = max_bad_share, dict(tags or {})
        self.rows: Counter[str] = Counter()  # by source
        self.bad: Counter[str] = Counter()
        self.first_bad = ""

    def add(self, line: SpeechTextBatch) -> None:
        """Count a line.

        Raises:
            BadData: Too many rows are bad.
        """
        self.rows.update(line.sources)
        for source, reason in line.left_out:
            self.bad[source] += 1
            self.first_bad = self.first_bad or reason
            if self.bad.total() <= MAX_TOLD:
                log.warning("left out of training: %s", reason)
        bad, rows = self.bad.total(), self.rows.total() + self.bad.total()
        if line.left_out and rows >= MIN_ROWS and bad > self.max_bad_share * rows:
            raise BadData(
                "FAC-A00",
                "too many rows cannot be read",
                f"the training data ({', '.join(f'{n} of {name}' for name, n in sorted(self.bad.items()))})",
                f"{bad} of {rows} rows",
                f"at most {self.max_bad_share:.2%}",
                f"Repair or remove them (fac data check), or raise data.max_bad_share. The first: {self.first_bad}",
            )

    def metrics(self) -> dict[str, float]:
        """Rows of each source and tag, and bad ones, since the beginning of this run; the same names in any process."""
        tagged: Counter[str] = Counter()
        for source, tags in self.tags.items():
            tagged.update(dict.fromkeys(tags, self.rows[source]))
        return {
            **{f"data/rows/{source}": float(self.rows[source]) for source in self.tags},
            **{f"data/tags/{tag}": float(n) for tag, n in tagged.items()},
            "data/bad_rows": float(self.bad.total()),
        }
