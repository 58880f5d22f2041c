"""Ways out of a training that does not fit, as ``fac estimate`` offers them: each with the words that try it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fac_lightning.cli.estimate_model import build_shapes, prepare
from fac_lightning.config import accepts

if TYPE_CHECKING:
    from fac_lightning.estimate import Conversation, LineBudget, LineCost, Remedy, Setting

__all__ = ["ways_out"]

_RANK = 16  # of a low-rank update, the default of LoRABackbone


def ways_out(
    tree: Mapping[str, Any],
    line: LineCost,
    setting: Setting,
    cast: bool,
    autocast: Any,
    conversation: Conversation,
    budget: LineBudget,
    rate: float,
) -> list[Remedy]:
    """The three cheapest changes that would make it fit; fewer, or none, where no single change does."""
    from fac_lightning.estimate import cheapest

    found = list(_lines(tree, line, setting))
    found += list(_devices(line, setting))
    if not any(remedy.disturbs == 0 and remedy.outcome.fits for remedy in found):
        found += list(_checkpointing(tree, setting, cast, autocast, conversation, budget, rate))
    found += list(_smaller(tree, line, setting))
    return cheapest(found)


def _lines(tree: Mapping[str, Any], line: LineCost, setting: Setting) -> Iterator[Remedy]:
    """Shorter lines, more of them to a step."""
    from fac_lightning.estimate import Remedy, assess, fewer_positions

    for part in (2, 4):
        shorter = replace(setting, lines=setting.lines * part)
        capacity = line.positions // part
        yield Remedy(
            f"lines of {capacity} positions, {part} times as many to a step",
            f"data.capacity={capacity} trainer.accumulate_grad_batches={shorter.lines}",
            assess(fewer_positions(line, 1 / part), shorter),
            disturbs=0,
        )


def _devices(line: LineCost, setting: Setting) -> Iterator[Remedy]:
    """More devices that share more, and states of fewer bytes."""
    from fac_lightning.estimate import STRATEGIES, Remedy, assess

    if setting.machine.name != "cpu":
        for name in ("zero2", "fsdp2", "zero3"):
            sharding = STRATEGIES[name]
            if sharding.master and not setting.sharding.master:
                continue  # its line is another: all in bfloat16
            for ranks in (2, 4, 8, 16, 32, 64):
                if ranks < setting.ranks or (ranks == setting.ranks and name == setting.sharding.name):
                    continue
                outcome = assess(line, replace(setting, sharding=sharding, ranks=ranks))
                if outcome.fits:
                    yield Remedy(f"{ranks} devices, {name}", f"--gpus {ranks} --strategy {name}", outcome, disturbs=1)
                    break
    if setting.state_bytes is None:
        eight = assess(line, replace(setting, state_bytes=2.0))
        yield Remedy("optimizer states of 8 bits (an optimizer of your own)", "", eight, disturbs=1)


def _checkpointing(
    tree: Mapping[str, Any],
    setting: Setting,
    cast: bool,
    autocast: Any,
    conversation: Conversation,
    budget: LineBudget,
    rate: float,
) -> Iterator[Remedy]:
    """Layers computed again in the backward pass."""
    import torch

    from fac_lightning.estimate import Remedy, assess, hollow, packed_batch, trace_line
    from fac_lightning.models import SpeechLM

    node, words = _checkpointed(tree["model"], "model")
    if not words:
        return
    model = build_shapes(node)
    prepare(model, tree["task"])
    whole = model if isinstance(model, SpeechLM) else SpeechLM(model)
    traced = hollow(whole, torch.bfloat16) if cast else whole
    line = trace_line(traced, packed_batch(conversation, whole.geometry, budget, rate), autocast, fold=True)
    yield Remedy("gradient checkpointing everywhere", " ".join(words), assess(line, setting), disturbs=0)


def _checkpointed(node: Any, key: str) -> tuple[Any, list[str]]:
    """A node whose parts compute their layers again, and the words for those that did not."""
    if not isinstance(node, Mapping):
        return node, []
    changed, words = {}, []
    for name, value in node.items():
        changed[name], found = _checkpointed(value, f"{key}.{name}")
        words += found
    if "_target_" in node and accepts(node, "gradient_checkpointing") and not node.get("gradient_checkpointing"):
        changed["gradient_checkpointing"] = True
        words.append(f"{key}.gradient_checkpointing=true")
    return changed, words


def _smaller(tree: Mapping[str, Any], line: LineCost, setting: Setting) -> Iterator[Remedy]:
    """Less that is trained, or a smaller head."""
    from fac_lightning.estimate import Remedy, assess, frozen_slot, low_rank_slot, smaller_slot

    model = tree["model"]
    slots, head = line.slots, model.get("head") or {}
    if "encoder" in slots and slots["encoder"].trained:
        frozen = assess(frozen_slot(line, "encoder", stored=True), setting)
        words = "model.encoder=fac_lightning.encoders.CachedEncoder model.encoder.encoder=... task.freeze=[encoder]"
        yield Remedy("a frozen encoder, its features stored", words, frozen, disturbs=2)
    if "backbone" in slots and slots["backbone"].trained:
        low = assess(low_rank_slot(line, "backbone", _low_rank(slots["backbone"].total)), setting)
        words = "model.backbone=fac_lightning.backbones.LoRABackbone model.backbone.backbone=..."
        yield Remedy(f"low-rank updates of the backbone (rank {_RANK})", words, low, disturbs=2)
    name = "transformer.num_hidden_layers" if "transformer" in head else "num_layers"
    layers = head.get("transformer", head).get(name.rpartition(".")[2])
    if "head" in slots and isinstance(layers, int) and layers > 1:
        half = assess(smaller_slot(line, "head", (layers // 2) / layers), setting)
        yield Remedy(f"a head of {layers // 2} layers", f"model.head.{name}={layers // 2}", half, disturbs=2)


def _low_rank(parameters: int) -> int:
    """Parameters of low-rank updates beside a backbone: about half a percent of it at rank 16."""
    return parameters * _RANK // 3000
