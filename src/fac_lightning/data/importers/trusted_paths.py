"""Files that a manifest names, kept below the folders that it may reach."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fac_lightning.data.errors import BadData
from fac_lightning.data.importers.told import missing_file, shown

__all__ = ["TrustedPaths", "is_command"]

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_command(written: str) -> bool:
    """Whether a shell would be asked for the sound: Kaldi's ``... |`` and ``| ...``, NeMo's ``pipe:...``."""
    text = written.strip()
    return text.startswith(("|", "pipe:")) or text.endswith("|")


class TrustedPaths:
    """Turns what a manifest writes into a file, and refuses what leads elsewhere.

    Args:
        root: Where relative paths start, and below which files must lie.
        trust_paths: Let files lie anywhere.
        trust_commands: Let ``run`` run commands.
    """

    def __init__(self, root: Path, trust_paths: bool = False, trust_commands: bool = False) -> None:
        self.root, self.trust_paths, self.trust_commands = root, trust_paths, trust_commands

    def file(self, written: object, where: str) -> Path:
        """The file of a path.

        Raises:
            BadData: It is no path, a command, an address, outside the root (FAC-D10), or not there (FAC-A01).
        """
        if not isinstance(written, str) or not written.strip():
            raise BadData("FAC-I02", "wrong value", where, shown(written), "a path", "Correct it.")
        if is_command(written):
            raise self._refused(where, written, "a file", "Store the audio as files; commands are not run here.")
        if URL.match(written):
            raise self._refused(where, written, "a file of this machine", "Download the data first.")
        path = self.root / written
        if not self.trust_paths and not path.resolve().is_relative_to(self.root.resolve()):
            advice = "Name the folder that holds it as root, or set trust_paths=true if you know the manifest."
            raise self._refused(where, written, f"a file below {self.root}", advice)
        if not path.is_file():
            raise missing_file(path, where)
        return path

    def run(self, command: str, where: str) -> bytes:
        """What a command prints, if commands are trusted.

        Raises:
            BadData: They are not (FAC-D10), or the command fails.
        """
        if not self.trust_commands:
            advice = "Store the audio as files, or set trust_commands=true if you know what it does."
            raise self._refused(where, command, "a file, for a command can do anything", advice)
        text = command.strip().removeprefix("pipe:").strip("| ")
        done = subprocess.run(text, shell=True, cwd=self.root, capture_output=True)
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip()[-200:]
            raise BadData(
                "FAC-A01", f"command that failed ({told})", where, shown(command), "exit code 0", "Run it by hand."
            )
        return done.stdout

    @staticmethod
    def _refused(where: str, written: str, rule: str, advice: str) -> BadData:
        return BadData("FAC-D10", "source that leaves the data", where, shown(written), rule, advice)
