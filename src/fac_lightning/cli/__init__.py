"""The ``fac`` command: one file a command, heavy imports inside, so that checking and help answer at once."""

from fac_lightning.cli.app import main
from fac_lightning.cli.build import Built, LoadedRun, load_run
from fac_lightning.cli.fit import FitResult

__all__ = ["Built", "FitResult", "LoadedRun", "load_run", "main"]
