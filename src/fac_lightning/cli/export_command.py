"""``fac export``: a run becomes a checkpoint that other people's programs read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.build import load_run
from fac_lightning.config import UserError, loads

__all__ = ["export_checkpoint", "main"]


def main(words: Sequence[str]) -> int:
    """Export and say what the checkpoint holds."""
    made = parser("export", "Write a run as a Fun-Audio-Chat checkpoint, which the released code and vLLM read.")
    made.add_argument("run", metavar="RUN", help="run folder whose model is made of the released parts")
    made.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    made.add_argument("--format", choices=["fun-audio-chat"], default="fun-audio-chat", help="kind of checkpoint")
    made.add_argument(
        "--like", metavar="DIR", help="checkpoint, or its import, whose configuration and tokenizers to take"
    )
    made.add_argument("--dtype", metavar="TYPE", help="float32 or bfloat16; that of the first checkpoint when left out")
    made.add_argument("--compare", metavar="DIR", help="also list the tensors that differ from this checkpoint's")
    made.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="the run may build these too")
    args = made.parse_args(words)
    print(export_checkpoint(args.run, args.out, args.like, args.dtype, args.allow))
    if args.compare:
        from fac_lightning.interop.fun_audio_chat import compare

        differing = compare(args.compare, args.out)
        print("\n".join([f"{len(differing)} tensors differ from {args.compare}", *(f"  {name}" for name in differing)]))
    print(f"checkpoint: {args.out}")
    return 0


def export_checkpoint(
    run: str | Path,
    out: str | Path,
    like: str | Path | None = None,
    dtype: str | None = None,
    allow: Sequence[str] = (),
) -> str:
    """Write ``out``; gives what became of the tensors.

    Args:
        run: Run folder.
        out: Folder to make.
        like: Where configuration and tokenizers come from; the import that the run goes back to when None.
        dtype: Of floating tensors; that of the first checkpoint when None.
        allow: Further prefixes that the run's recipe may build.

    Raises:
        CheckpointError: The run's model is not a Fun-Audio-Chat of that configuration.
        UserError: Nothing tells where the run comes from, or something stands at ``out``.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: nothing is overwritten; name a new folder with --out")
    origin = _origin(Path(run)) if like is None else Path(like)
    from fac_lightning.interop.fun_audio_chat import from_run, save

    chat = from_run(load_run(run, allow).model, origin)
    save(chat, folder, dtype=dtype or chat.layout.dtype)
    return str(chat.coverage)


def _origin(run: Path) -> Path:
    """The import that a run goes back to, through the runs it started from."""
    seen: list[Path] = []
    folder = run
    while folder not in seen:
        seen.append(folder)
        if (folder / "fun_audio_chat").is_dir():
            return folder
        file = folder / "recipe.yaml"
        if not file.is_file():
            break
        start = loads(file.read_text(encoding="utf-8"), str(file)).tree.get("init_from")
        if not start:
            break
        folder = Path(start)
    raise UserError(
        f"nothing tells which released checkpoint {run} goes back to (looked at {', '.join(map(str, seen))}); "
        "name one whose configuration and tokenizers to take, with --like"
    )
