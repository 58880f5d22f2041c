"""Process that speaks with Piper; see ``worker.py``.

Run as ``python -m fac_lightning.synthesizers.piper_worker <voice wheel>``. The runtime is under the GPL-3.0: it is
imported in this process only, which is never imported by the package.
"""

from __future__ import annotations

import importlib
import sys

from fac_lightning.synthesizers.worker import serve


class Voice:
    """A Piper voice out of a wheel that offers ``model_path()`` and ``config_path()``."""

    def __init__(self, wheel: str) -> None:
        import onnxruntime  # type: ignore[import-untyped]
        from piper import PiperVoice

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        files = importlib.import_module(wheel)
        self.voice = PiperVoice.load(files.model_path(), config_path=files.config_path())
        self.voice.session = onnxruntime.InferenceSession(
            str(files.model_path()), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, text: str, speed: float) -> tuple[int, bytes]:
        """Sample rate and 16-bit PCM of a text; the engine's own noise is off, so that it repeats itself."""
        from piper import SynthesisConfig

        config = SynthesisConfig(length_scale=1.0 / speed, noise_scale=0.0, noise_w_scale=0.0)
        chunks = list(self.voice.synthesize(text, config))
        return chunks[0].sample_rate, b"".join(chunk.audio_int16_bytes for chunk in chunks)


if __name__ == "__main__":
    serve(Voice(sys.argv[1]))
