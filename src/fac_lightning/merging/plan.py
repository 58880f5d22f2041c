"""Which tensors of a merge are merged and which are copied from whom, decided before a single one is read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fac_lightning.merging.base import MergeMethod
from fac_lightning.merging.prefix import bridge_names
from fac_lightning.merging.source import TensorSource, TensorSpec, pieces
from fac_lightning.patterns import match_names, matches
from fac_lightning.weights import CheckpointError

__all__ = ["GROWING", "MergePlan", "PlannedTensor", "Rule", "plan_merge"]

#: What happens to a tensor.
Rule = Literal["merged", "mean", "base only", "tuned only", "not asked for", "not a float"]

#: Names of tensors with a row per token, which may have more rows in the tuned model.
GROWING = (
    "*embed_tokens.weight", "*wte.weight", "*embed_in.weight", "*word_embeddings.weight", "*lm_head.weight",
    "*lm_head.bias", "*embed_out.weight",
)  # fmt: skip

#: Behind a head's name and behind its model's: where the input table stands when a causal LM ties the two.
_TABLES = ("model.embed_tokens.weight", "transformer.wte.weight")
_HEAD = "lm_head.weight"

#: Names that stand beside quantised weights.
_SCALES = (
    "scales", "qzeros", "g_idx", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight.absmax",
    "weight.quant_map", "SCB", "weight_format",
)  # fmt: skip
_PACKED = (torch.int8, torch.uint8, torch.int32)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class PlannedTensor:
    """What becomes of one tensor of the output."""

    name: str
    spec: TensorSpec  # of the output
    rule: Rule
    base: str | None = None  # its name in the base
    tuned: tuple[int, ...] = ()  # places of the tuned models that hold it; those that do not count as unchanged
    note: str = ""

    @property
    def common(self) -> int:
        """Elements that are merged, from the front; those behind are rows that the tuned model added."""
        return self._common if self.rule == "merged" else 0

    _common: int = 0


@dataclass(frozen=True)
class MergePlan:
    """Every tensor of the output."""

    tensors: dict[str, PlannedTensor]
    prefix: str  # that stands before the base's names
    notes: tuple[str, ...]  # what a reader should know


def plan_merge(
    base: TensorSource,
    tuned: Sequence[TensorSource],
    method: MergeMethod,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    base_prefix: str | None = None,
    growing: Sequence[str] = GROWING,
) -> MergePlan:
    """Decide the fate of every tensor.

    Args:
        base: Before training.
        tuned: After; names, shapes and types of the output are those of the first.
        method: What will merge.
        include: Patterns of tensors to merge; none means all. The others are copied from the tuned model.
        exclude: Patterns of tensors not to merge.
        base_prefix: Put before the base's names; None finds it.
        growing: Patterns of tensors that may have more rows in the tuned model.

    Raises:
        CheckpointError: Shapes do not fit, weights are quantised, or the models have nothing in common.
        ValueError: A pattern matches nothing, nothing is left to merge, or the method cannot merge so many models.
    """
    if not tuned:
        raise ValueError("a merge needs at least one tuned model")
    method.check(len(tuned))
    for source in (base, *tuned):
        _refuse_packed(source, exclude)
    specs = _joined(tuned)
    _refuse_other_layout(base, specs)
    bridge, prefix = bridge_names(base.specs, _with_aliases(specs, tuned), base_prefix)
    notes = _bridge_note(base, bridge, prefix, specs)
    origin, tied = _origins(base, tuned, bridge, specs, prefix)
    notes += [f"{name} of the base is not copied: it is tied to {other} there" for name, other in tied.items()]
    shared = [name for name in specs if name in origin]
    floats = [name for name in shared if specs[name].dtype.is_floating_point]
    included = {name for found in match_names(include, shared, "include", _SHARED).values() for name in found}
    excluded = {name for found in match_names(exclude, shared, "exclude", _SHARED).values() for name in found}
    wanted = (included or set(shared)) - excluded
    match_names(method.alphas, [name for name in floats if name in wanted], "alphas", "tensor that is merged")
    tensors = {}
    for name, spec in specs.items():
        holders = tuple(i for i, source in enumerate(tuned) if name in source.specs)
        tensors[name] = _fate(name, spec, origin.get(name), holders, base, tuned, name in wanted, growing)
    for name, other in bridge.items():
        if other not in specs and name not in origin.values() and name not in tied:
            tensors[other] = PlannedTensor(other, base.specs[name], "base only", base=name)
    if not any(planned.rule == "merged" for planned in tensors.values()):
        why = f"include and exclude leave none of {len(shared)}" if not wanted else "there is no floating point tensor"
        raise ValueError(f"nothing is left to merge: {why} that base and tuned model share")
    types = Counter((base.specs[t.base or ""].dtype, t.spec.dtype) for t in tensors.values() if t.rule == "merged")
    for (old, new), count in types.items():
        if old != new:
            notes.append(
                f"{count} tensors are {_short(old)} in the base and {_short(new)} in the tuned model: kept as that"
            )
    return MergePlan(tensors, prefix, tuple(notes))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_SHARED = "tensor that base and tuned model share"


def _fate(
    name: str,
    spec: TensorSpec,
    origin: str | None,
    holders: tuple[int, ...],
    base: TensorSource,
    tuned: Sequence[TensorSource],
    wanted: bool,
    growing: Sequence[str],
) -> PlannedTensor:
    if origin is None:
        if len(holders) > 1 and spec.dtype.is_floating_point:
            return PlannedTensor(name, spec, "mean", tuned=holders)
        return PlannedTensor(name, spec, "tuned only", tuned=holders)
    old = base.specs[origin]
    if not wanted:
        return PlannedTensor(name, spec, "not asked for", base=origin, tuned=holders)
    if not spec.dtype.is_floating_point or not old.dtype.is_floating_point:
        return PlannedTensor(name, spec, "not a float", base=origin, tuned=holders)
    grown = old.shape != spec.shape
    if grown:
        _check_growth(name, old, spec, base, tuned[holders[0]], growing)
    note = f"{spec.shape[0] - old.shape[0]} new rows copied" if grown else ""
    return PlannedTensor(name, spec, "merged", origin, holders, note, old.numel)


def _check_growth(
    name: str, old: TensorSpec, new: TensorSpec, base: TensorSource, tuned: TensorSource, growing: Sequence[str]
) -> None:
    what = f"{name} is {old.shape} in {base.label} but {new.shape} in {tuned.label}"
    same = len(old.shape) == len(new.shape) > 0 and old.shape[1:] == new.shape[1:]
    if not same:
        raise CheckpointError(f"{what}: models of one architecture and size can be merged; leave it out by exclude")
    if new.shape[0] < old.shape[0]:
        raise CheckpointError(f"{what}: rows of the base are missing in the tuned model; leave it out by exclude")
    if not any(matches(pattern, name) for pattern in growing):
        raise CheckpointError(
            f"{what}: only the vocabulary may grow; name the tensor in growing if rows were added behind the old ones, "
            "or leave it out by exclude"
        )


def _joined(tuned: Sequence[TensorSource]) -> dict[str, TensorSpec]:
    """All tensors of the tuned models, as the first that holds each has them."""
    specs: dict[str, TensorSpec] = {}
    for source in tuned:
        for name, spec in source.specs.items():
            known = specs.setdefault(name, spec)
            if known.shape != spec.shape or known.dtype.is_floating_point != spec.dtype.is_floating_point:
                raise CheckpointError(f"{name} is {spec} in {source.label} but {known} in another tuned model")
    return specs


def _with_aliases(specs: Mapping[str, TensorSpec], tuned: Sequence[TensorSource]) -> dict[str, TensorSpec]:
    other = {alias: specs[name] for source in tuned for alias, name in source.aliases.items() if name in specs}
    return {**other, **specs}


def _origins(
    base: TensorSource,
    tuned: Sequence[TensorSource],
    bridge: Mapping[str, str],
    specs: Mapping[str, TensorSpec],
    prefix: str,
) -> tuple[dict[str, str], dict[str, str]]:
    """Output name -> name in the base; and names of the base that only repeat another of its tensors."""
    origin = {other: name for name, other in bridge.items() if other in specs}
    back = {other: name for name, other in bridge.items()}
    for source in tuned:  # the tuned model stores a shared tensor under one name, the base under the other
        for alias, stored in source.aliases.items():
            if alias in back and stored in specs:
                origin.setdefault(stored, back[alias])
    for alias, stored in base.aliases.items():
        if stored in bridge and bridge[stored] not in specs and prefix + alias in specs:
            origin.setdefault(prefix + alias, stored)
    tied: dict[str, str] = {}
    for name, other in bridge.items():
        if other not in specs and name not in origin.values():
            twin = _twin(base, name, set(origin.values()))
            if twin:
                tied[name] = twin
    # A head that the base ties to its table, and the tuned model no longer.
    table = next((back[prefix + name] for name in _TABLES if prefix + name in back), None)
    if table is not None and prefix + _HEAD in specs and prefix + _HEAD not in back:
        origin.setdefault(prefix + _HEAD, table)
    return origin, tied


def _twin(base: TensorSource, name: str, among: set[str]) -> str | None:
    """Another tensor of the base with the same content, if the two are a vocabulary's."""
    spec = base.specs[name]
    if len(spec.shape) != 2 or not any(matches(pattern, name) for pattern in GROWING):
        return None
    same = [other for other in among if base.specs[other] == spec and any(matches(p, other) for p in GROWING)]
    return next((other for other in same if _equal(base, name, base, other)), None)


def _equal(one: TensorSource, name: str, two: TensorSource, other: str) -> bool:
    for start, stop in pieces(one.specs[name].numel, 1 << 18):
        # the first is copied: both may come from one buffer
        if not torch.equal(one.read(name, start, stop).clone(), two.read(other, start, stop)):
            return False
    return True


def _bridge_note(
    base: TensorSource, bridge: Mapping[str, str], prefix: str, specs: Mapping[str, TensorSpec]
) -> list[str]:
    found = sum(other in specs for other in bridge.values())
    if not prefix and found == len(bridge):
        return []
    where = f"under {prefix!r} of the tuned model" if prefix else "in the tuned model"
    return [f"{found} of {len(bridge)} tensors of {base.label} are found {where}"]


def _refuse_other_layout(base: TensorSource, tuned: Mapping[str, TensorSpec]) -> None:
    """A base that holds the same numbers under names that no prefix bridges would be merged in part, unnoticed."""
    one_by_one = next((name for name in base.specs if re.search(r"\.experts\.\d+\.", name)), None)
    if one_by_one and any(".experts.gate_up_proj" in name for name in tuned):
        raise CheckpointError(
            f"{base.label} holds its experts one by one ({one_by_one}) and the tuned model stacks them: give the base "
            "in the tuned model's names, such as fac_lightning.interop.fun_audio_chat.StartingWeights writes"
        )
    tower = next((name for name in base.specs if ".language_model." in name), None)
    if tower and not any(".language_model." in name for name in tuned):
        raise CheckpointError(
            f"{base.label} is a whole multimodal checkpoint ({tower}): save its language model as a folder of its own "
            "(HFBackbone(name).save_pretrained(folder)) and name that"
        )


def _refuse_packed(source: TensorSource, exclude: Sequence[str]) -> None:
    """Numbers that are no weights by themselves: quantised ones, and factors of low-rank updates."""
    for name, spec in source.specs.items():
        module, _, leaf = name.rpartition(".")
        if any(part in ("lora_A", "lora_B") for part in name.split(".")) and not any(
            matches(pattern, name) for pattern in exclude
        ):
            raise CheckpointError(
                f"{source.label} holds low-rank updates ({name}), and merging factors does not merge their products: "
                "add them to the weights first (LoRABackbone.merged), or leave them out by exclude"
            )
        packed = spec.dtype in _PACKED and any(f"{module}.{scale}" in source.specs for scale in _SCALES)
        if spec.dtype in _FLOAT8 or packed or leaf in ("qweight", "weight_packed"):
            raise CheckpointError(
                f"{source.label} is quantised ({name} is {spec}): merge the weights from before quantisation"
            )
