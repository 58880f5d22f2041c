"""``fac data shard``: dialogues packed into few large files, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.config import UserError, instantiate

__all__ = ["main"]

SHOWN = 20  # dialogues left out that the screen shows
LEFT_OUT = 3  # exit code


def main(words: Sequence[str]) -> int:
    """Write shards, or dialogues of shards, and print a table; 3 if some dialogue was left out."""
    made = parser(
        "data shard",
        "Pack dialogues into shards (Lhotse's Shar): few large files that training reads one after the other, from a "
        "disk or through fsspec. A shard is there when it is whole: a run that was stopped goes on when it is called "
        "again.",
    )
    made.add_argument("dialogues", metavar="DIALOGUES", help="dialogues folder, or its cuts.jsonl; with --back shards")
    help_ = "changes: of the recipe that --codes names, else tokenizer.num_codebooks=4 and the like"
    made.add_argument("overrides", metavar="key=value", nargs="*", help=help_)
    made.add_argument("--out", required=True, metavar="DIR", help="folder of the shards")
    help_ = "dialogues of a shard (1000), or what its audio takes before compression, such as 500MB"
    made.add_argument("--shard-size", default="1000", metavar="N", help=help_)
    help_ = "flac (the default) and wav keep every sample, opus is small, none leaves audio out"
    made.add_argument("--audio", default="flac", choices=("flac", "wav", "opus", "none"), help=help_)
    help_ = "codes of the replies: 'stored' for those that come with turns, or whose: a recipe or run folder, a dotted "
    made.add_argument("--codes", default="stored", metavar="TOKENIZER", help=help_ + "path, a node '{_target_: ...}'")
    help_ = "keep what the frozen encoder of a recipe or run folder (or a dotted path, a node) says of the users' turns"
    made.add_argument("--features", metavar="ENCODER", help=help_)
    help_ = "keep the token ids of all texts by the text tokenizer of this hub id or folder; training tokenises nothing"
    made.add_argument("--text-tokenizer", metavar="NAME", help=help_)
    made.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0: none")
    made.add_argument("--skip-bad", action="store_true", help="leave dialogues out that cannot be stored")
    made.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="a run may build these too")
    made.add_argument("--back", action="store_true", help="write the dialogues of shards into the folder DIR")
    args = made.parse_intermixed_args(words)
    if args.workers < 0:
        raise UserError(f"--workers must be at least 0, got {args.workers}")
    if args.back:
        return _back(args.dialogues, args.out)
    if args.codes == "stored" and args.overrides:
        raise UserError(f"{args.overrides[0]} changes a tokenizer, but --codes names none")
    from fac_lightning.cli.tokenize_command import encoder_node, tokenizer_node
    from fac_lightning.data.shards import DialogueSharding

    codes = None
    if args.codes != "stored":
        codes = partial(instantiate, tokenizer_node(args.codes, args.overrides, args.allow), "tokenizer")
    audio = None if args.audio == "none" else args.audio
    features = None
    if args.features is not None:
        features = partial(instantiate, encoder_node(args.features, args.allow), "encoder")
    given = (args.dialogues, args.out, args.shard_size, audio, codes, args.workers, args.skip_bad)
    job = DialogueSharding(*given, features=features, text_tokenizer=args.text_tokenizer)
    summary = job.run()
    print_summary(args.dialogues, args.out, summary)
    return LEFT_OUT if summary["left_out"] else 0


def _back(shards: str, out: str) -> int:
    """Dialogues of shards, written as a dialogues folder; goes on where it was stopped."""
    from fac_lightning.data.dialogue import DialogueWriter
    from fac_lightning.data.shards import ShardFolder, read_shards

    ShardFolder(shards)  # what is wrong with it is told before anything is made
    with DialogueWriter(out) as writer:
        for dialogue in read_shards(shards):
            if dialogue.id not in writer.done:
                writer.write(dialogue)
        print(f"{len(writer.done):,} dialogues: {writer.folder}")
    return 0


def print_summary(dialogues: str, out: str, summary: Mapping[str, Any]) -> None:
    """A table of what is in the shards, and what was left out."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"Shards of {dialogues}", highlight=False, soft_wrap=True)
    table = Table("", "", show_header=False)
    table.columns[1].justify = "right"
    table.add_row("shards", f"{summary['shards']:,}", style="bold")
    table.add_row("dialogues", f"{summary['dialogues']:,}")
    table.add_row("turns", f"{summary['turns']:,}")
    table.add_row("hours of users", f"{summary['user_hours']:,.2f}")
    table.add_row("hours of assistants", f"{summary['assistant_hours']:,.2f}")
    for name, sizes in summary["bytes"].items():
        table.add_row(f"{name}.*.tar", f"{sum(sizes) / 1e6:,.1f} MB")
    if (of := summary["codes_of"]) is not None:
        table.add_row("codes of", f"{of['tokenizer']}, {of['frame_rate']:g} Hz")
    if (of := summary.get("features_of")) is not None:
        table.add_row("features of", f"{of['encoder']} {of['fingerprints']['float32']}, {of['dim']} wide")
    if (of := summary.get("texts_of")) is not None:
        table.add_row("token ids of", f"{of['tokenizer']} {of['fingerprint']}")
    if summary["clipped_samples"]:
        table.add_row("samples clipped to 16 bits", f"{summary['clipped_samples']:,}", style="red")
    table.add_row("left out", f"{len(summary['left_out']):,}", style="red" if summary["left_out"] else None)
    console.print(table)
    console.print(f"shards: {out}", highlight=False, soft_wrap=True)
    for one in summary["left_out"][:SHOWN]:
        print(f"fac: left out: dialogue {one['id']!r}: {one['reason']}", file=sys.stderr)
    if len(summary["left_out"]) > SHOWN:
        print(f"fac: left out: {len(summary['left_out']) - SHOWN} more in {out}/cuts.summary.json", file=sys.stderr)
