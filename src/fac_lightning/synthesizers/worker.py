"""A speech engine in a process of its own, asked line by line.

Two reasons: an engine under the GPL stays a separate program, and a C library that keeps global state or crashes takes
nothing with it. The other side of the line protocol is ``serve`` in the same file:

    request   {"text": "Hello.", "rate": 160}
    answer    {"sample_rate": 22050, "pcm": "<base64 of little-endian 16-bit samples>"}   or   {"error": "..."}
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from typing import IO, Any

__all__ = ["EngineWorker", "serve", "shared_worker"]


class EngineWorker:
    """Start ``python -m module *arguments`` on the first request and keep it until ``close`` or the end.

    Args:
        module: Dotted name of a module that calls ``serve``.
        arguments: Its command line.
    """

    def __init__(self, module: str, arguments: tuple[str, ...] = ()) -> None:
        self.module, self.arguments = module, arguments
        self._process: subprocess.Popen[str] | None = None
        self._pid = -1  # a forked child must not talk through its parent's pipe
        self._finalizer: Callable[[], Any] | None = None
        self._errors: IO[bytes] | None = None

    def ask(self, request: Mapping[str, Any]) -> tuple[int, bytes]:
        """Sample rate in Hz and 16-bit PCM of a request.

        Raises:
            RuntimeError: The engine refused or died; the message carries its last words.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(dict(request)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the engine process {self.module} died: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.module}: {answer['error']}")
        return int(answer["sample_rate"]), base64.b64decode(answer["pcm"])

    def close(self) -> None:
        """End the process; the next request starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer, self._errors = None, None, None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._pid != os.getpid():
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by _end
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module, *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                encoding="utf-8",
            )
            self._pid = os.getpid()
            self._finalizer = weakref.finalize(self, _end, self._process, self._errors, self._pid)
        return self._process

    def _last_words(self) -> str:
        assert self._errors is not None
        assert self._process is not None
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        self.close()
        return lines[-1] if lines else f"exit status {code}"

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_worker, (self.module, self.arguments)


_workers: weakref.WeakValueDictionary[tuple[str, ...], EngineWorker] = weakref.WeakValueDictionary()


def shared_worker(module: str, arguments: tuple[str, ...] = ()) -> EngineWorker:
    """The worker of a module and its arguments, one for all voices of this process; it ends with the last of them."""
    worker = _workers.get((module, *arguments))
    if worker is None:
        worker = _workers[(module, *arguments)] = EngineWorker(module, arguments)
    return worker


def _end(process: subprocess.Popen[str], errors: IO[bytes], pid: int) -> None:
    """Close the pipes, which ends ``serve``, and reap the process; in a forked child only its own copies close."""
    for pipe in (process.stdin, process.stdout, errors):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # unsent bytes for an engine that is gone
                pipe.close()
    if pid != os.getpid():
        return
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(speak: Callable[..., tuple[int, bytes]]) -> None:
    """Answer requests on standard input until it closes; ``speak(**request)`` gives sample rate and 16-bit PCM."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the engine itself prints goes to standard error
    for line in sys.stdin:
        try:
            sample_rate, pcm = speak(**json.loads(line))
            answer: dict[str, Any] = {"sample_rate": sample_rate, "pcm": base64.b64encode(pcm).decode("ascii")}
        except Exception as error:  # whatever went wrong is the caller's to tell
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    answers.close()
