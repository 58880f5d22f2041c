"""Weights of released formats at tiny sizes, with random numbers."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from fac_lightning.tokenizers.s3 import _import_package
from fac_lightning.tokenizers.s3_mel import S3LogMel

__all__ = ["make_s3_weights"]


def make_s3_weights(path: str | Path, seed: int = 0) -> Path:
    """Write an S3 tokenizer of version 3 as the package ``s3tokenizer`` stores it, and return the file.

    Two narrow layers; its codes of noise are spread over the codebook.

    Args:
        path: File to write.
        seed: Of the weights; the caller's random state is left as it was.

    Raises:
        ImportError: The package is not installed.
    """
    _import_package()
    from s3tokenizer.model_v3 import ModelConfigV3, S3TokenizerV3

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = S3TokenizerV3("v3", ModelConfigV3(n_audio_state=128, n_audio_head=2, n_audio_layer=2)).eval()
        mels, lengths = S3LogMel()(0.1 * torch.randn(1, 64000), torch.tensor([64000]))
        hidden: Tensor = model.encoder(mels, lengths)[0][0]  # (T, 128)
        spread, mean = torch.std_mean(hidden, 0)
        project = model.quantizer._codebook.project_down
        project.weight.copy_(torch.randn(8, 128) / spread / 128**0.5)
        project.bias.copy_(-project.weight @ mean)
    torch.save(model.state_dict(), path)
    return Path(path)
