"""What answers at once stays light: importing the package, its recipes, and the command's help."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "lhotse", "lightning")


@pytest.mark.parametrize(
    "code",
    [
        "import fac_lightning",
        "import fac_lightning.config",
        "import fac_lightning.pipeline",
        "from fac_lightning.cli import main; main([]); main(['fit', '--help'])",
        "from fac_lightning.cli import main; assert main(['list']) == 0",
    ],
)
def test_nothing_heavy_is_imported(code):
    report = f"\nimport sys\nprint(sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("room", ["adapters", "backbones", "encoders", "heads", "models", "tokenizers", "types"])
def test_parts_do_not_pull_transformers_or_lhotse(room):
    code = (
        f"import sys, fac_lightning.{room}\n"
        "print(sorted({'transformers', 'lhotse', 'lightning', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
