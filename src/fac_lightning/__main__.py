"""``python -m fac_lightning``: the ``fac`` command, with the working folder's own parts importable."""

from fac_lightning.cli import main

raise SystemExit(main())
