"""The one door to lhotse."""

from __future__ import annotations

import os
import warnings
from typing import Any

__all__ = ["import_lhotse"]


def import_lhotse() -> Any:
    """The ``lhotse`` module, told to read audio with libsndfile.

    lhotse otherwise tries torchaudio when one is installed; a torchaudio that cannot load (its wheels want CUDA
    libraries) then breaks every in-memory read. The choice must stand before the first import, and a value that the
    user has set is kept.
    """
    os.environ.setdefault("LHOTSE_AUDIO_BACKEND", "LibsndfileBackend")
    with warnings.catch_warnings():
        # Third party: some of lhotse's optional readers use deprecated standard-library names when imported.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        import lhotse
    return lhotse
