"""S3 speech tokens by the released ONNX file and onnxruntime, as the released scripts make them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fac_lightning.tokenizers.s3_base import S3Base
from fac_lightning.weights import CheckpointError

__all__ = ["S3OnnxTokenizer"]


class S3OnnxTokenizer(S3Base):
    """Speech -> S3 codes through the released ONNX file: the numbers of the released scripts, one clip after another.

    :class:`S3Tokenizer` runs the same network in batches; this one needs onnxruntime only (extra ``s3-onnx``).

    Args:
        path: ``speech_tokenizer_v2.onnx`` or ``speech_tokenizer_v3.onnx``.
        detokenizer: A ``SpeechDetokenizer`` of these codes; ``None`` leaves encoding only.

    Raises:
        ImportError: If onnxruntime is absent.
        CheckpointError: If there is no such file, or it takes other inputs.
    """

    digest: Tensor

    def __init__(self, path: str, detokenizer: nn.Module | None = None) -> None:
        super().__init__(detokenizer, path)
        if not Path(path).is_file():
            raise CheckpointError(f"there is no ONNX file {path!r}; it lies in the folder of Fun-CosyVoice3-0.5B-2512")
        self.path = path
        # The weights are not in the state dict, so their hash is: codes kept on disk are those of this file.
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        self.session = self._open()

    def quantize(self, mels: Tensor, lengths: Tensor) -> Tensor:
        """Codes ``(B, ceil(M / 4))`` of log-mels ``(B, 128, M)`` of at most 30 s; ``lengths`` ``(B,)`` in frames."""
        names = [given.name for given in self.session.get_inputs()]
        codes = torch.zeros(len(mels), -(-mels.shape[2] // 4), dtype=torch.long, device=mels.device)
        for row, (mel, length) in enumerate(zip(mels.cpu().numpy(), lengths.tolist(), strict=True)):
            given = (mel[None, :, :length], np.array([length], dtype=np.int32))
            found = np.asarray(self.session.run(None, dict(zip(names, given, strict=True)))[0]).reshape(-1)
            if len(found) != -(-length // 4):
                raise CheckpointError(
                    f"{self.path!r} gave {len(found)} codes for {length} mel frames, not one for four; is it an S3 "
                    "tokenizer of 25 codes a second?"
                )
            codes[row, : len(found)] = torch.from_numpy(found.astype(np.int64)).to(mels.device)
        return codes

    def _open(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("S3OnnxTokenizer needs onnxruntime: pip install 'fac-lightning[s3-onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # as the released scripts set it
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        try:
            session = onnxruntime.InferenceSession(self.path, sess_options=options, providers=providers)
        except Exception as error:  # onnxruntime has an exception class for every kind of bad file
            raise CheckpointError(
                f"{self.path!r} cannot be opened by onnxruntime: {str(error).splitlines()[0]}"
            ) from error
        ranks = [len(given.shape) for given in session.get_inputs()]
        if ranks != [3, 1]:
            raise CheckpointError(
                f"{self.path!r} is no S3 tokenizer: its inputs have {ranks} dimensions, not [3, 1] (log-mel, length)"
            )
        return session

    def __getstate__(self) -> dict[str, Any]:
        """Without the session, which cannot be copied or pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file again."""
        super().__setstate__(state)
        self.session = self._open()
