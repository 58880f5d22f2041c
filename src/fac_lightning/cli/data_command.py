"""``fac data``: import, check, shard and describe dialogues; the code of each is ``cli/data_<what>.py``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fac_lightning.config.errors import UserError, did_you_mean

__all__ = ["main"]

#: what is done to data -> its line in the overview
VERBS: dict[str, str] = {
    "check": "everything that is wrong with manifests and audio, a line each",
    "shard": "pack dialogues into few large files, for training on many",
    "import": "other people's training data as a dialogues folder",
    "stats": "hours, turns, lengths, voices, modes, text denser than speech; as a table and a page",
}


def main(words: Sequence[str]) -> int:
    """Hand the words on to the module of the verb."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: fac data VERB ...\n")
        print("\n".join(f"  fac data {name:<8}{what}" for name, what in VERBS.items()))
        return 0
    verb, *rest = words
    if verb not in VERBS:
        raise UserError(f"'fac data' knows no '{verb}'.{did_you_mean(verb, VERBS)} It knows: {', '.join(VERBS)}")
    return int(importlib.import_module(f"fac_lightning.cli.data_{verb}").main(rest))
