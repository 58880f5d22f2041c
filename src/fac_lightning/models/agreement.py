"""What parts of a model must agree on."""

from __future__ import annotations

from fac_lightning.adapters.base import FeatureAdapter, Fusion
from fac_lightning.encoders.base import SpeechEncoder

__all__ = ["agree", "agree_on_empty_positions", "agree_on_frames"]


def agree(name: str, value: int, other_name: str, other: int, key: str) -> None:
    """Refuse two sizes that must be one; ``key`` of the recipe is the way out."""
    if value != other:
        raise ValueError(f"{name} ({value}) != {other_name} ({other}): set {key} to {other}")


def agree_on_frames(encoder: SpeechEncoder, adapter: FeatureAdapter) -> None:
    """Refuse an adapter that does not take the encoder's frames.

    Raises:
        ValueError: One has codes where the other has features, or sizes differ.
    """
    given, taken = encoder.codebook_size, adapter.codebook_size
    if given is not None and taken is None:
        raise ValueError(
            f"encoder {type(encoder).__name__} gives codes, which feature_adapter {type(adapter).__name__} would read "
            "as quantities; take one that embeds codes, such as fac_lightning.adapters.CodeFeatureGrouping"
        )
    if given is None and taken is not None:
        raise ValueError(
            f"feature_adapter {type(adapter).__name__} embeds codes, but encoder {type(encoder).__name__} gives "
            "features; take fac_lightning.encoders.TokenizerEncoder, or an adapter of features such as ConcatGrouping"
        )
    if given is not None and taken is not None:
        key = "model.feature_adapter.codebook_size"
        agree("feature_adapter.codebook_size", taken, "encoder.codebook_size", given, key)
    key = f"model.feature_adapter.{'in_dim' if given is None else 'num_codebooks'}"
    agree("feature_adapter.in_dim", adapter.in_dim, "encoder.dim", encoder.dim, key)


def agree_on_empty_positions(adapter: FeatureAdapter, fusion: Fusion) -> None:
    """Refuse an adapter that leaves positions empty where the fusion reads codes at every one of them.

    Raises:
        ValueError: They do not go together.
    """
    if adapter.variable_rate and fusion.reads_user_codes:
        raise ValueError(
            f"feature_adapter {type(adapter).__name__} leaves positions of user speech out, but fusion "
            f"{type(fusion).__name__} reads codes at every one of them; take another fusion "
            "(fac_lightning.adapters.SumFusion or MeanFusion), or an adapter of a fixed rate"
        )
