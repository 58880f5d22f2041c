"""Process that speaks with the espeak-ng shared library of the wheel ``espeakng_loader``; see ``worker.py``.

Run as ``python -m fac_lightning.synthesizers.espeak_worker``. The library is under the GPL-3.0: it is loaded in this
process only, which is never imported by the package.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from fac_lightning.synthesizers.worker import serve

_RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: give samples to the callback, play nothing
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Library:
    """espeak-ng through ctypes (functions of its ``speak_lib.h``)."""

    def __init__(self) -> None:
        import espeakng_loader

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        # The library keeps its data path in 160 characters; a relative path fits however deep the environment lies.
        os.chdir(Path(espeakng_loader.get_data_path()).parent)
        self.sample_rate: int = self.library.espeak_Initialize(_RETRIEVAL, 0, b".", _DONT_EXIT)
        if self.sample_rate <= 0:
            raise RuntimeError(f"espeak-ng finds no data in {Path.cwd()}")
        self.chunks: list[bytes] = []
        self.callback = _CALLBACK(self._collect)  # kept: ctypes does not
        self.library.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples: ctypes._Pointer[ctypes.c_short] | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            self.chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    def __call__(self, text: str, voice: str, rate: int, pitch: int) -> tuple[int, bytes]:
        """Sample rate and 16-bit PCM of a text."""
        language, plus, variant = voice.partition("+")
        name = {"en-gb": "en"}.get(language, language) + plus + variant  # British English is the plain one here
        if self.library.espeak_SetVoiceByName(name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self.library.espeak_SetParameter(_RATE, rate, 0)
        self.library.espeak_SetParameter(_PITCH, pitch, 0)
        self.chunks.clear()
        data = text.encode() + b"\0"
        status = self.library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, _UTF8, None, None)
        if status != 0 or self.library.espeak_Synchronize() != 0:
            raise RuntimeError(f"espeak-ng could not speak {text!r}")
        return self.sample_rate, b"".join(self.chunks)


if __name__ == "__main__":
    serve(Library())
