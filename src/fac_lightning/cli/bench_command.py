"""``fac bench``: time one kind of work in several ways, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fac_lightning.cli.arguments import parser
from fac_lightning.config.errors import UserError, did_you_mean

__all__ = ["BENCHMARKS", "main"]

#: benchmark -> what it measures; the code of each is ``bench/<name>.py``
BENCHMARKS = {
    "data": "packed lines out of shards, from flac and from codes, beside plain lhotse on the same files",
    "train": "a training step beside plainer ones: padded, head on all positions, logits of all rows",
    "encode": "the speech encoder on chunks beside one dense mask, 37 to 423 s of audio",
    "loss": "log-probabilities over the vocabulary beside cross entropy over all rows",
    "merge": "two models merged on disk, streamed beside load-all",
    "dpo": "a step of preference training: padded, packed, prompts shared, the reference stored or computed",
    "generate": "one spoken answer: the prompt, the first group, milliseconds a group",
    "serve": "16 answers at once beside one after another, each identical, and with arrivals by chance",
    "growth": "a training step over rows, frames to a position (k), vocabulary and audio: how cost grows",
    "headline": "5 Hz with a head against 12.5 and 25 Hz without, on the same speech",
}


def main(words: Sequence[str]) -> int:
    """Measure, print a table, write JSON when asked."""
    listed = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    made = parser(
        "bench",
        f"Time one kind of work in several ways, in turns, with random weights. {listed}. "
        "Ratios of one run are what counts: times of two runs on a busy machine do not compare.",
    )
    made.add_argument("which", metavar="WHICH", help=f"one of {', '.join(BENCHMARKS)}")
    made.add_argument(
        "--config", default="tiny", metavar="SIZE", help="tiny, small, bigvocab, qwen0.6b or qwen8b; tiny"
    )
    made.add_argument("--device", default="cpu", help="cpu or cuda; cpu without it")
    made.add_argument("--rounds", type=int, default=3, help="turns of every cell; 3 without it")
    made.add_argument("--reps", type=int, default=1, help="timed calls in a turn; 1 without it")
    made.add_argument("--threads", type=int, default=1, help="threads of torch; 1 without it")
    made.add_argument("--isolate", action="store_true", help="every cell in a process of its own; tells its memory too")
    made.add_argument(
        "--impl",
        action="append",
        default=[],
        metavar="NAME=MODULE:CLASS",
        help="time this implementation too (fac_lightning.bench.Implementation has the five methods); may be repeated",
    )
    made.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="SWEEP",
        help="growth: batch, k, vocabulary or audio alone; may be repeated; all four without it",
    )
    made.add_argument(
        "--compiled",
        action="store_true",
        help="train, generate, serve: with cells that torch.compile made, which takes minutes the first time",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured here")
    args = made.parse_args(words)
    if args.which not in BENCHMARKS:
        raise UserError(
            f"there is no benchmark '{args.which}'.{did_you_mean(args.which, BENCHMARKS)} "
            f"It is one of {', '.join(BENCHMARKS)}"
        )
    if args.json is not None and not args.json.parent.is_dir():
        raise UserError(f"--json {args.json}: there is no folder {args.json.parent} to write into")
    from rich.console import Console

    from fac_lightning.bench import (
        BenchSettings,
        check_device,
        check_options,
        find_benchmark,
        load_implementation,
        report_dict,
        report_lines,
        report_table,
        run_benchmark,
        sizes_of,
    )

    try:
        sizes_of(args.config)
        check_device(args.device)
        settings = BenchSettings(
            args.config,
            args.device,
            args.rounds,
            args.reps,
            args.threads,
            tuple(args.impl),
            args.isolate,
            tuple(args.over),
            args.compiled,
        )
        benchmark = find_benchmark(args.which)
        check_options(benchmark, settings)
        benchmark.cells(settings)  # nothing heavy happens in it, and it knows its own options
        for word in settings.implementations:
            load_implementation(word)
    except ValueError as error:
        raise UserError(str(error)) from error
    report = run_benchmark(benchmark, settings)
    if args.json is not None:
        args.json.write_text(json.dumps(report_dict(report), indent=1) + "\n", encoding="utf-8")
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console = Console(width=200)
    console.print(report_table(report))
    print("\n".join(report_lines(report)))
    return 0
