"""Packages imported without those that they need for other things than ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["stand_ins"]


@contextmanager
def stand_ins(part: str, package: str, *names: str) -> Iterator[None]:
    """Stand-ins for modules that are not imported yet, while ``part`` imports ``package``."""
    added = [name for name in names if name not in sys.modules]
    sys.modules.update({name: _StandIn(part, package, name) for name in added})
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


class _StandIn(ModuleType):
    """A module that is imported and not used; using it says why it is not there."""

    def __init__(self, part: str, package: str, name: str) -> None:
        super().__init__(name)
        self._part, self._package = part, package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise ImportError(
            f"{self.__name__}.{name}: {self._package} was imported by {self._part}, without {self.__name__}; to use "
            f"this function of {self._package}, import {self._package} before"
        )
