"""Which name of a tuned model is which of its base: a SpeechLM holds the LLM that it grew from behind a prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fac_lightning.merging.source import TensorSpec
from fac_lightning.weights import CheckpointError

__all__ = ["bridge_names"]


def bridge_names(
    base: Mapping[str, TensorSpec], tuned: Mapping[str, TensorSpec], prefix: str | None = None
) -> tuple[dict[str, str], str]:
    """Names of the base as the tuned model would call them.

    Without a prefix the one is taken under which most tensors of the base are found with their shapes, such as
    ``backbone.`` where the base is the LLM alone.

    Args:
        base: Name -> type and shape.
        tuned: Name -> type and shape.
        prefix: Put before the names of the base; None finds it.

    Returns:
        Name in the base -> name in the tuned model, for all of the base; and the prefix.

    Raises:
        CheckpointError: Nothing is found under the prefix, or two prefixes fit alike.
    """
    plain = {name: name for name in base}
    # `transformers` calls the body of some models otherwise ("transformer.h.0"); HFBackbone calls each "model"
    body = Counter(name.partition(".")[0] for name in base).most_common(1)[0][0] if base else ""
    renamed = {name: f"model{name.removeprefix(body)}" if name.startswith(f"{body}.") else name for name in base}
    for names in (plain, renamed):
        votes = (
            Counter({prefix: _found(base, tuned, names, prefix)}) if prefix is not None else _votes(base, tuned, names)
        )
        best = votes.most_common(2)
        if not best or best[0][1] == 0:
            continue
        if len(best) == 2 and best[0][1] == best[1][1]:
            both = " and ".join(repr(found) for found, _ in best)
            raise CheckpointError(f"the base fits under {both} alike; say which is meant by base_prefix")
        found = best[0][0]
        return {name: found + other for name, other in names.items()}, found
    under = "" if prefix is None else f" under the prefix {prefix!r}"
    raise CheckpointError(
        f"base and tuned model have no tensor in common{under}: the base holds {_some(base)}, the tuned model "
        f"{_some(tuned)}; if one stands in the other behind a prefix, say so by base_prefix"
    )


def _votes(base: Mapping[str, TensorSpec], tuned: Mapping[str, TensorSpec], names: Mapping[str, str]) -> Counter[str]:
    known = {other: base[name] for name, other in names.items()}
    votes: Counter[str] = Counter()
    for name, spec in tuned.items():
        starts = [0, *(i + 1 for i, char in enumerate(name) if char == ".")]
        votes.update(name[:i] for i in starts if _alike(known.get(name[i:]), spec))
    return votes


def _found(
    base: Mapping[str, TensorSpec], tuned: Mapping[str, TensorSpec], names: Mapping[str, str], prefix: str
) -> int:
    return sum(prefix + other in tuned for other in names.values())


def _alike(one: TensorSpec | None, other: TensorSpec) -> bool:
    """The same shape, but for rows: a vocabulary may have grown."""
    return one is not None and len(one.shape) == len(other.shape) and one.shape[1:] == other.shape[1:]


def _some(names: Mapping[str, object], most: int = 2) -> str:
    return ", ".join(list(names)[:most]) + (" ..." if len(names) > most else "")
