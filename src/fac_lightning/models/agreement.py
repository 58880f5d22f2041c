"""What parts of a model must agree on."""

from __future__ import annotations

import math

from fac_lightning.adapters.base import CodeAdapter, FeatureAdapter, Fusion
from fac_lightning.backbones.base import Backbone
from fac_lightning.encoders.base import SpeechEncoder
from fac_lightning.heads.base import SpeechHead
from fac_lightning.tokenizers.base import SpeechTokenizer

__all__ = ["SizeError", "agree_on_codes", "agree_on_parts", "agree_on_rates", "matching_groups"]


class SizeError(ValueError):
    """Parts of other sizes or rates.

    Args:
        message: Both numbers and the way out.
        *fixes: Ways out, the first one touching least: key of a recipe -> value.
    """

    def __init__(self, message: str, *fixes: dict[str, int]) -> None:
        super().__init__(message)
        self.fixes = list(fixes)


def agree(name: str, value: int, other_name: str, other: int, key: str) -> None:
    """Refuse two sizes that must be one; ``key`` of the recipe is the way out."""
    if value != other:
        raise SizeError(f"{name} ({value}) != {other_name} ({other}): set {key} to {other}", {key: other})


def agree_on_parts(
    backbone: Backbone,
    head: SpeechHead | None,
    encoder: SpeechEncoder | None,
    feature_adapter: FeatureAdapter | None,
    code_adapter: CodeAdapter | None,
    fusion: Fusion | None,
) -> None:
    """Refuse parts of one model that do not go together.

    Raises:
        ValueError: One lacks another, or they differ in a size that must be one.
    """
    if (encoder is None) != (feature_adapter is None):
        given, missing = ("encoder", "feature_adapter") if encoder is not None else ("feature_adapter", "encoder")
        raise ValueError(f"{given} is set but {missing} is not: user speech needs both, or neither")
    if code_adapter is not None and fusion is None:
        raise ValueError(
            "code_adapter is set but fusion is not: text and codes meet at a position, so name how they join "
            "(fac_lightning.adapters.SumFusion or MeanFusion)"
        )
    if encoder is not None and feature_adapter is not None:
        agree_on_frames(encoder, feature_adapter)
    if feature_adapter is not None and fusion is not None:
        agree_on_empty_positions(feature_adapter, fusion)
    for name, part in (("feature_adapter", feature_adapter), ("code_adapter", code_adapter), ("head", head)):
        if part is not None:
            agree(f"{name}.dim", part.dim, "backbone.dim", backbone.dim, "vars.dim")
    if head is not None and code_adapter is not None:
        for size in ("group_size", "codebook_size", "num_codebooks"):
            agree(
                f"code_adapter.{size}",
                getattr(code_adapter, size),
                f"head.{size}",
                getattr(head, size),
                f"vars.{size}",
            )


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


def agree_on_codes(tokenizer: SpeechTokenizer, codes: SpeechHead | CodeAdapter, slot: str) -> None:
    """Refuse a tokenizer whose codes are not those that the part in ``slot`` says or reads.

    Raises:
        SizeError: Names every size that differs.
    """
    sizes = ("num_codebooks", "codebook_size")
    pairs = [(size, getattr(tokenizer, size), getattr(codes, size)) for size in sizes]
    wrong = [(size, there, here) for size, there, here in pairs if there != here]
    if wrong:
        found = ", ".join(f"tokenizer.{size} ({there}) != {slot}.{size} ({here})" for size, there, here in wrong)
        fix = " and ".join(f"vars.{size} to {there}" for size, there, _ in wrong)
        message = f"{type(tokenizer).__name__} does not fit the model: {found}; set {fix}"
        raise SizeError(message, {f"vars.{size}": there for size, there, _ in wrong})


def agree_on_rates(
    tokenizer: SpeechTokenizer,
    group_size: int,
    encoder: SpeechEncoder,
    adapter: FeatureAdapter,
    tolerance: float,
) -> None:
    """Refuse rates of positions that lie apart: those of user speech and those of the model's own.

    An adapter of a variable rate has none to agree on.

    Raises:
        SizeError: They differ by more than ``tolerance``, a part of the greater one.
    """
    frames, codes = encoder.frame_rate, tokenizer.frame_rate
    heard, said = frames / adapter.group_size, codes / group_size
    if adapter.variable_rate or _alike(heard, said, tolerance):
        return
    ways = [(adapter.group_size, max(1, round(codes / heard))), (max(1, round(frames / said)), group_size)]
    ways = [way for way in ways if _alike(frames / way[0], codes / way[1], tolerance)]
    if all(way[0] != adapter.group_size for way in ways):  # to stay near the rate of user speech both must change
        ways.append(matching_groups(frames, codes, heard))
    fixes: list[dict[str, int]] = []
    told = []
    for of_frames, of_codes in ways:
        fix = {"model.feature_adapter.group_size": of_frames} if of_frames != adapter.group_size else {}
        fix |= {"vars.group_size": of_codes} if of_codes != group_size else {}
        if fix:
            words = [f"{key}{' (of codes)' if 'vars' in key else ''} to {value}" for key, value in fix.items()]
            told.append(f"{' and '.join(words)} ({frames / of_frames:.3g} and {codes / of_codes:.3g} a second)")
            fixes.append(fix)
    way_out = f"set {', or '.join(told)}" if told else "no whole groups bring them closer"
    raise SizeError(
        f"user speech has {heard:.3g} positions a second (encoder.frame_rate {frames:g} / feature_adapter.group_size "
        f"{adapter.group_size}) but the model's own {said:.3g} (tokenizer.frame_rate {codes:g} / group_size "
        f"{group_size}): {way_out}; if they are to differ, set model.rate_tolerance to 1",
        *fixes,
    )


def _alike(one: float, other: float, tolerance: float) -> bool:
    return min(one, other) >= (1 - tolerance) * max(one, other)


def matching_groups(encoder_rate: float, tokenizer_rate: float, wanted: float) -> tuple[int, int]:
    """Frames and codes per position that give user speech and the model's own about one rate, and one near ``wanted``.

    Both rates being one counts more than their being ``wanted``, all by their ratios.

    Args:
        encoder_rate: Frames per second of user speech.
        tokenizer_rate: Code frames per second.
        wanted: Positions per second.
    """

    def cost(groups: tuple[int, int]) -> float:
        heard, said = encoder_rate / groups[0], tokenizer_rate / groups[1]
        return 4 * abs(math.log(heard / said)) + abs(math.log(said / wanted))

    most = max(1, math.ceil(2 * tokenizer_rate / wanted))
    pairs = [(max(1, round(encoder_rate * codes / tokenizer_rate)), codes) for codes in range(1, most + 1)]
    return min(pairs, key=cost)
