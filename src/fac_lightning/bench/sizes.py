"""Sizes that benchmarks run at, and models of those sizes with random weights.

``small`` is the size at which the released code was measured on a CPU: backbone 8 x 512 over 32000 text tokens, head
4 x 512, encoder 4 x 256, 6565 codes, groups of 5. ``bigvocab`` has the vocabulary of Qwen3. The two Qwen sizes are
those of Qwen3-0.6B and Qwen3-8B with the head and the encoder of the released Fun-Audio-Chat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fac_lightning.adapters import ConcatCodeGrouping, FunAudioCodeGrouping, MeanGrouping, SumFusion
from fac_lightning.backbones import HFBackbone
from fac_lightning.encoders import FunAudioEncoder
from fac_lightning.heads import FunAudioHead, ParallelHead, RefinedHead, SpeechHead
from fac_lightning.models import SpeechLM

__all__ = ["CONFIGS", "BenchSizes", "build_encoder", "build_model", "sizes_of"]


@dataclass(frozen=True)
class BenchSizes:
    """Sizes of all parts."""

    name: str
    dim: int  # of the backbone
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    tied: bool  # one matrix for embedding and output
    head_width: int  # of the speech head
    head_layers: int
    head_heads: int
    head_ffn: int
    encoder_dim: int
    encoder_layers: int
    encoder_heads: int
    encoder_ffn: int
    codebook_size: int
    group_size: int = 5
    n_mels: int = 128
    frame_rate: float = 25.0  # codes a second
    dtype: str = "float32"

    @property
    def backbone_config(self) -> dict[str, object]:
        """The backbone as transformers names it."""
        return {
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.dim,
            "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": self.tied,
        }


_TINY = BenchSizes("tiny", 128, 4, 4, 2, 32, 384, 4000, False, 128, 2, 4, 384, 64, 2, 4, 256, 512)
_SMALL = BenchSizes("small", 512, 8, 8, 4, 64, 1536, 32000, False, 512, 4, 8, 1536, 256, 4, 4, 1024, 6565)
_QWEN = BenchSizes("qwen0.6b", 1024, 28, 16, 8, 128, 3072, 151936, True, 1024, 28, 16, 3072, 1280, 32, 20, 5120, 6565)
CONFIGS = {
    "tiny": _TINY,
    "small": _SMALL,
    "bigvocab": replace(_SMALL, name="bigvocab", vocab_size=151936),
    "qwen0.6b": _QWEN,
    "qwen8b": replace(
        _QWEN, name="qwen8b", dim=4096, num_layers=36, num_heads=32, num_kv_heads=8, ffn_dim=12288, tied=False
    ),
}


def sizes_of(name: str) -> BenchSizes:
    """Sizes by the name of a configuration.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in CONFIGS:
        raise ValueError(f"there is no configuration {name!r}; --config takes {', '.join(CONFIGS)}")
    return CONFIGS[name]


def build_encoder(sizes: BenchSizes, kind: type[FunAudioEncoder] = FunAudioEncoder) -> FunAudioEncoder:
    """The speech encoder with random weights, on the CPU."""
    return kind(
        n_mels=sizes.n_mels,
        d_model=sizes.encoder_dim,
        num_layers=sizes.encoder_layers,
        num_heads=sizes.encoder_heads,
        ffn_dim=sizes.encoder_ffn,
        dim=sizes.dim,
    )


def build_model(
    sizes: BenchSizes,
    device: str = "cpu",
    group_size: int | None = None,
    refined: bool = True,
    seed: int = 0,
    released: bool = False,
) -> SpeechLM:
    """A model with every slot filled and random weights; the caller's random state is left as it was.

    Args:
        sizes: Of the parts.
        device: Where it lands.
        group_size: Frames to a position; that of ``sizes`` when None.
        refined: With the refined head; else codes are read off the backbone's hidden state by one matrix a place, which
            with ``group_size`` 1 is the plain model at the rate of the codes.
        seed: Of the weights.
        released: With the head and the code adapter of the released model, in the sizes of the refined head.
    """
    k = sizes.group_size if group_size is None else group_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _released_head(sizes, k) if released else _head(sizes, k, refined)
        codes = FunAudioCodeGrouping if released else ConcatCodeGrouping
        model = SpeechLM(
            backbone=HFBackbone(config=dict(sizes.backbone_config), dtype=sizes.dtype),
            head=head,
            encoder=build_encoder(sizes),
            feature_adapter=MeanGrouping(sizes.dim, k, sizes.dim),
            code_adapter=codes(sizes.codebook_size, k, sizes.dim),
            fusion=SumFusion(),
        )
    # as it is on the CPU: a model without numbers (``estimate.ShapesOnly``) cannot be moved
    return model if torch.device(device).type == "cpu" else model.to(device)


def _head(sizes: BenchSizes, k: int, refined: bool) -> SpeechHead:
    if not refined:
        return ParallelHead(sizes.dim, k, sizes.codebook_size)
    return RefinedHead(
        sizes.dim,
        k,
        sizes.codebook_size,
        width=sizes.head_width,
        num_layers=sizes.head_layers,
        num_heads=sizes.head_heads,
        ffn_dim=sizes.head_ffn,
    )


def _released_head(sizes: BenchSizes, k: int) -> SpeechHead:
    transformer = {
        "model_type": "qwen3",
        "hidden_size": sizes.head_width,
        "intermediate_size": sizes.head_ffn,
        "num_hidden_layers": sizes.head_layers,
        "num_attention_heads": sizes.head_heads,
        "num_key_value_heads": sizes.head_heads,
        "head_dim": sizes.head_width // sizes.head_heads,
        "max_position_embeddings": 40960,
    }
    return FunAudioHead(sizes.dim, k, sizes.codebook_size, transformer)
