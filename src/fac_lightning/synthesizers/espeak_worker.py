"""Process that speaks with the espeak-ng shared library of the wheel ``espeakng_loader``; see ``worker.py``.

Run as ``python -m fac_lightning.synthesizers.espeak_worker``. The library is under the GPL-3.0: it is loaded in this
process only, which is never imported by the package.

The library carries state from sentence to sentence (the phase of its voice's flutter), so the same text gives other
samples the second time. Where the system can fork, each sentence is therefore spoken by a fresh copy of this process,
in which the library wakes up as new.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import espeakng_loader

from fac_lightning.synthesizers.worker import serve

_RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: give samples to the callback, play nothing
_DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT
_UTF8 = 1  # espeakCHARS_UTF8
_RATE, _PITCH = 1, 3  # espeak_PARAMETER
_SAMPLE_RATE = 22050  # of all voices of the library
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_FILES = {"en-us": "gmw/en-US", "en-gb": "gmw/en"}  # a file's name spares the library its search through all voices

_library = ctypes.CDLL(espeakng_loader.get_library_path())


def speak(text: str, voice: str, rate: int, pitch: int) -> bytes:
    """16-bit PCM of a text, from a library that has not spoken in this process before."""
    sample_rate = _library.espeak_Initialize(_RETRIEVAL, 0, b".", _DONT_EXIT)
    if sample_rate != _SAMPLE_RATE:
        raise RuntimeError(f"espeak-ng finds no data in {Path.cwd()} (it answers {sample_rate})")
    language, plus, variant = voice.partition("+")
    if _library.espeak_SetVoiceByName((_FILES.get(language, language) + plus + variant).encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    chunks: list[bytes] = []

    def collect(samples: ctypes._Pointer[ctypes.c_short] | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _CALLBACK(collect)
    _library.espeak_SetSynthCallback(callback)
    _library.espeak_SetParameter(_RATE, rate, 0)
    _library.espeak_SetParameter(_PITCH, pitch, 0)
    data = text.encode() + b"\0"
    if _library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, _UTF8, None, None) != 0:
        raise RuntimeError(f"espeak-ng could not speak {text!r}")
    _library.espeak_Synchronize()
    _library.espeak_Terminate()
    return b"".join(chunks)


def speak_afresh(text: str, voice: str, rate: int, pitch: int) -> tuple[int, bytes]:
    """Sample rate and 16-bit PCM of a text, spoken by a forked copy of this process where there is fork."""
    if not hasattr(os, "fork"):
        return _SAMPLE_RATE, speak(text, voice, rate, pitch)
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = b"+" + speak(text, voice, rate, pitch)
        except Exception as error:  # told to the parent, which raises it
            answer = b"-" + str(error).encode()
        with os.fdopen(send, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    if answer[:1] != b"+":
        raise RuntimeError(answer[1:].decode() or f"espeak-ng crashed at {text!r}")
    return _SAMPLE_RATE, answer[1:]


if __name__ == "__main__":
    # The library keeps its data path in 160 characters; a relative path fits however deep the environment lies.
    os.chdir(Path(espeakng_loader.get_data_path()).parent)
    serve(speak_afresh)
