"""``fac estimate``: what a training costs before it runs: memory, operations, hours, also at other rates."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fac_lightning.cli.arguments import recipe_parser
from fac_lightning.cli.estimate_model import at_rate, build_shapes, frames_per_second, largest_layer, prepare
from fac_lightning.config import Problem, Recipe, RecipeError, UserError, check, load

if TYPE_CHECKING:
    from fac_lightning.estimate import Conversation, LineBudget, LineCost, RateComparison, Setting

__all__ = ["main"]

log = logging.getLogger(__name__)

#: Precisions of Lightning -> whether weights are cast, and whether matrix products are.
_PRECISIONS = {
    "32": (False, False),
    "32-true": (False, False),
    "bf16-mixed": (False, True),
    "16-mixed": (False, True),
    "bf16": (False, True),
    "bf16-true": (True, False),
    "16-true": (True, False),
}


def main(words: Sequence[str]) -> int:
    """Estimate and print; with ``--json`` also write."""
    args = _parser().parse_intermixed_args(words)
    recipe = load(args.recipe, args.overrides)
    _refuse_mistakes(recipe)
    import torch

    from fac_lightning.cli.estimate_report import as_dict, show
    from fac_lightning.cli.estimate_ways import ways_out
    from fac_lightning.estimate import assess, hollow, packed_batch, trace_line

    model = build_shapes(recipe.tree["model"])
    _refuse_other_models(model)
    prepare(model, recipe.tree["task"])
    rate = frames_per_second(recipe.tree, model)
    conversation, budget = _conversation(args, recipe.tree), _budget(recipe.tree)
    setting, cast, mixed = _setting(args, recipe.tree)
    setting = replace(setting, largest_layer=largest_layer(model))
    traced = hollow(model, torch.bfloat16) if cast else model
    autocast = torch.bfloat16 if mixed else None
    batch = packed_batch(conversation, _geometry(model), budget, rate)
    line = trace_line(traced, batch, autocast, fold=True)
    line = _with_reference(line, recipe.tree["task"])
    found = assess(line, setting)
    ways = [] if found.fits else ways_out(recipe.tree, line, setting, cast, autocast, conversation, budget, rate)
    rates = None if args.no_rates else _rates(args, recipe.tree, conversation, setting, cast, autocast, rate, line)
    steps = _steps(args, recipe.tree, found)
    report = as_dict(recipe.name, line, setting, found, ways, rates, conversation, steps, args.price)
    show(report)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    made = recipe_parser(
        "estimate", "Parameters, memory of a rank, operations, hours and cost of a training, without running it."
    )
    made.add_argument(
        "--gpu", metavar="NAME", help="h100, h200, a100-80, l40s, 4090, cpu ...; by the recipe's accelerator"
    )
    made.add_argument("--gpus", type=int, metavar="N", help="how many; devices x num_nodes of the recipe by default")
    made.add_argument("--strategy", help="auto, ddp, fsdp2, zero1, zero2, zero3; the recipe's by default")
    made.add_argument("--precision", choices=sorted(_PRECISIONS), help="the recipe's by default")
    made.add_argument("--mfu", type=float, metavar="SHARE", help="share of the peak that training reaches; 0.4 on GPUs")
    amount = made.add_mutually_exclusive_group()
    amount.add_argument("--hours", type=float, metavar="H", help="hours of conversation to train on once")
    amount.add_argument("--steps", type=int, metavar="N", help="optimizer steps; trainer.max_steps by default")
    made.add_argument("--price", type=float, metavar="PER_HOUR", help="of one device")
    made.add_argument("--prompt-tokens", type=int, default=60, help="text before an answer (60)")
    made.add_argument("--user-seconds", type=float, default=6.0, help="of a question (6)")
    made.add_argument("--reply-seconds", type=float, default=12.0, help="of an answer (12)")
    made.add_argument("--no-rates", action="store_true", help="leave out the comparison of 25, 12.5 and 5 Hz")
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    return made


def _refuse_mistakes(recipe: Recipe) -> None:
    """Mistakes of a recipe, but for what waits for the user's data; and recipes that train nothing."""
    problems = check(recipe, allow_missing=True)
    for name, what in {"model": "what is trained", "task": "what a training step is"}.items():
        if not recipe.tree.get(name):
            stages = recipe.tree.get("stages")
            within = ", ".join(stages) if isinstance(stages, Mapping) else ""
            hint = f" Its stages are recipes of their own: {within}." if within else ""
            problems.append(Problem(name, "", (f"is missing: {what}; fac estimate is for trainings.{hint}",)))
    if problems:
        raise RecipeError(recipe.name, problems)


def _refuse_other_models(model: Any) -> None:
    from fac_lightning.backbones.base import Backbone
    from fac_lightning.models import SpeechLM

    if not isinstance(model, SpeechLM | Backbone):
        raise UserError(
            f"model is a {type(model).__name__}; fac estimate knows speech LLMs (SpeechLM) and text LLMs (a Backbone)"
        )


def _geometry(model: Any) -> Any:
    from fac_lightning.models import SpeechLM

    return model.geometry if isinstance(model, SpeechLM) else SpeechLM(model).geometry


def _conversation(args: argparse.Namespace, tree: Mapping[str, Any]) -> Conversation:
    from fac_lightning.estimate import Conversation
    from fac_lightning.prompts import MODES

    data = tree.get("data") or {}
    weights = data.get("modes") or {data.get("mode") or "S2M": 1.0}
    named = [name for name, weight in weights.items() if weight]
    known = [MODES[name] for name in named if name in MODES]
    try:
        return Conversation(
            args.prompt_tokens,
            args.user_seconds,
            args.reply_seconds,
            heard="ASR" in named or any(mode.hears for mode in known),
            said="TTS" in named or any(mode.speaks for mode in known),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def _budget(tree: Mapping[str, Any]) -> LineBudget:
    from fac_lightning.estimate import LineBudget

    data = tree.get("data") or {}
    return LineBudget(
        capacity=int(data.get("capacity") or 2048),
        max_audio_seconds=data.get("max_audio_seconds"),
        max_speech_tokens=data.get("max_speech_tokens"),
    )


def _setting(args: argparse.Namespace, tree: Mapping[str, Any]) -> tuple[Setting, bool, bool]:
    """Devices and strategy; whether the weights are cast to bfloat16, and whether matrix products are."""
    from fac_lightning.estimate import Setting, machine_named, sharding_named

    trainer = tree.get("trainer") or {}
    default = "cpu" if trainer.get("accelerator") == "cpu" else "h100"
    ranks = args.gpus if args.gpus is not None else _devices(trainer)
    if ranks < 1:
        raise UserError(f"--gpus must be at least 1, got {ranks}")
    if args.mfu is not None and not 0 < args.mfu <= 1:
        raise UserError(f"--mfu is a share of the peak, above 0 and at most 1, got {args.mfu:g}")
    named = args.strategy or _strategy(trainer.get("strategy", "auto"))
    precision = str(args.precision or trainer.get("precision") or "32-true")
    if precision not in _PRECISIONS:
        raise UserError(f"trainer.precision = {precision} is not known here; take one of {', '.join(_PRECISIONS)}")
    try:
        machine, sharding = machine_named(args.gpu or default), sharding_named(named, ranks)
    except ValueError as error:
        raise UserError(str(error)) from None
    cast, mixed = _PRECISIONS[precision]
    if sharding.master:  # DeepSpeed casts the model itself
        cast, mixed = True, False
    setting = Setting(
        machine=machine,
        sharding=sharding,
        ranks=ranks,
        lines=int(trainer.get("accumulate_grad_batches") or 1),
        half=cast or mixed,
        foreach=mixed and precision == "16-mixed",  # where a loss is scaled AdamW is not fused
        utilisation=args.mfu,
    )
    return setting, cast, mixed


def _devices(trainer: Mapping[str, Any]) -> int:
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    count = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) and devices > 0 else 1
    return count * (nodes if isinstance(nodes, int) else 1)


def _strategy(given: Any) -> str:
    if isinstance(given, Mapping):
        name = str(given.get("_target_", "")).rpartition(".")[2]
        return f"deepspeed_stage_{given.get('stage', 2)}" if name == "DeepSpeedStrategy" else name
    return str(given)


def _with_reference(line: LineCost, task: Mapping[str, Any]) -> LineCost:
    """Preference training may run its reference model beside the trained one."""
    name = str((task.get("reference") or {}).get("_target_", "")).rpartition(".")[2]
    return line.with_reference(name == "FrozenReference") if name in ("FrozenReference", "LoRAOffReference") else line


def _steps(args: argparse.Namespace, tree: Mapping[str, Any], found: Any) -> float | None:
    if args.hours is not None:
        if args.hours <= 0:
            raise UserError(f"--hours must be above 0, got {args.hours:g}")
        return float(found.steps(args.hours))
    if args.steps is not None:
        if args.steps < 1:
            raise UserError(f"--steps must be at least 1, got {args.steps}")
        return float(args.steps)
    most = (tree.get("trainer") or {}).get("max_steps")
    return float(most) if isinstance(most, int) and most > 0 else None


def _rates(
    args: argparse.Namespace,
    tree: Mapping[str, Any],
    conversation: Conversation,
    setting: Setting,
    cast: bool,
    autocast: Any,
    rate: float,
    line: LineCost,
) -> RateComparison | None:
    """The same conversation at the codes' own rate without a head, at half of it, and as the recipe says."""
    import torch

    from fac_lightning.estimate import RateVariant, compare_rates, conversation_batch, hollow
    from fac_lightning.models import SpeechLM

    group = ((tree.get("model") or {}).get("head") or {}).get("group_size")
    if not isinstance(group, int) or group == 1 or not conversation.said:
        return None
    variants = {}
    for size, with_head in ((1, False), (2, True), (group, True)):
        if size == group and not with_head:
            continue
        name = f"{rate / size:g} Hz {'with' if with_head else 'without'} head"
        try:
            model = build_shapes(at_rate(tree["model"], size, with_head))
            prepare(model, tree["task"])
        except UserError as error:
            log.info(f"{name} is left out: {error}")
            continue
        if not isinstance(model, SpeechLM):
            return None
        if cast:
            model = hollow(model, torch.bfloat16)
        variants[name] = RateVariant(model, conversation_batch(conversation, model.geometry, rate))
    if len(variants) < 2:
        return None
    repeats = max(1.0, line.seconds / conversation.seconds) * setting.lines
    return compare_rates(
        variants,
        setting.machine,
        frame_rate=rate,
        autocast=autocast,
        half=setting.half,
        repeats=repeats,
        utilisation=setting.utilisation,
        fold=True,
    )
