"""``fac import``: a released checkpoint becomes a run folder, to talk to, to measure and to fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.config import Recipe, UserError, recipe_text

__all__ = ["import_checkpoint", "main"]


def main(words: Sequence[str]) -> int:
    """Import and say what was loaded."""
    made = parser("import", "Turn a Fun-Audio-Chat checkpoint into a run folder to talk to and to fine-tune.")
    made.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or hub id")
    made.add_argument("--out", required=True, metavar="DIR", help="run folder to make")
    made.add_argument("--dtype", metavar="TYPE", help="float32 or bfloat16; as stored when left out")
    made.add_argument("--format", choices=["fun-audio-chat"], default="fun-audio-chat", help="kind of checkpoint")
    args = made.parse_args(words)
    coverage = import_checkpoint(args.checkpoint, args.out, args.dtype)
    print(f"{coverage}\nrun folder: {args.out}")
    print(f"fine-tune:  fac fit {args.out}/recipe.yaml data.train=FOLDER")
    return 0


def import_checkpoint(checkpoint: str | Path, out: str | Path, dtype: str | None = None) -> str:
    """Make the run folder ``out``; gives what became of the tensors.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        UserError: Something stands at ``out``.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: nothing is overwritten; name a new run folder with --out")
    from fac_lightning.interop.fun_audio_chat import load, to_run
    from fac_lightning.interop.fun_audio_chat.files import new_folder

    chat = load(checkpoint, dtype=dtype)
    with new_folder(folder) as draft:
        to_run(chat, draft)
        recipe = Recipe(str(folder), _tree(chat, folder, dtype))
        (draft / "recipe.yaml").write_text(recipe_text(recipe), encoding="utf-8")
    return str(chat.coverage)


def _tree(chat: Any, folder: Path, dtype: str | None) -> dict[str, Any]:
    """A fine-tuning recipe with the published rates (report, stage 2 of post-training)."""
    from fac_lightning.interop.fun_audio_chat.config import part_arguments, recipe_node
    from fac_lightning.interop.fun_audio_chat.files import count_codes

    # what is stored in half precision is trained in float32 under autocast: half cannot hold so small steps
    halves = (dtype or chat.layout.dtype) in ("bfloat16", "float16")
    return {
        "seed": 42,
        "init_from": str(folder),
        "model": recipe_node(part_arguments(chat.config, codebook_size=count_codes(chat.processor))),
        "task": {"_target_": "fac_lightning.tasks.SpeechSFT", "lr": 1e-5, "min_lr": 1e-6, "warmup_steps": 20},
        "data": {
            "_target_": "fac_lightning.data.SpeechChatDataModule",
            "train": "???",
            "text_tokenizer": str(folder / "text_tokenizer"),
            "capacity": 2048,
            "reply": {"_target_": "fac_lightning.replies.GroupEnd", "lead_in_codes": 10},
        },
        "trainer": {
            "_target_": "lightning.Trainer",
            "max_steps": 1000,
            "precision": "bf16-mixed" if halves else "32-true",
            "default_root_dir": f"{folder}-tuned",
        },
    }
