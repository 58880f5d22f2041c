"""``fac chat``: talk to a trained run. No microphone needed: audio goes in and comes out as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fac_lightning.cli.arguments import parser
from fac_lightning.cli.build import load_run
from fac_lightning.prompts import MODES

__all__ = ["main"]

_AUDIO = (".wav", ".flac", ".ogg", ".mp3")


def main(words: Sequence[str]) -> int:
    """Answer one turn, or open a conversation."""
    made = parser("chat", "Talk to a trained run. Without --wav or --text it opens a conversation.")
    made.add_argument("run", metavar="RUN", help="run folder")
    made.add_argument("--wav", type=Path, help="say this audio file")
    made.add_argument("--text", help="say this text")
    made.add_argument("--out", type=Path, help="write the spoken answer here; beside --wav without it")
    made.add_argument("--mode", help=f"{', '.join(MODES)}; speech answers unless text is given and --out is not")
    made.add_argument("--system", help="system prompt")
    made.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    made.add_argument("--top-p", type=float, default=1.0)
    made.add_argument("--top-k", type=int, default=0)
    made.add_argument("--repetition-penalty", type=float, default=1.0)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--max-positions", type=int, default=256, help="longest answer, in positions of the backbone")
    made.add_argument("--allow", action="append", default=[], metavar="PREFIX", help="the run may build these too")
    args = made.parse_args(words)
    if args.wav is not None and args.text is not None:
        made.error("--wav and --text are one turn each: give one of them")
    if args.wav is not None and not args.wav.is_file():
        raise FileNotFoundError(f"there is no audio file {args.wav}")
    session = _Conversation(args)
    if args.wav is None and args.text is None:
        return _converse(session)
    out = args.out or (args.wav.with_suffix(".answer.wav") if args.wav is not None else None)
    session.answer(args.text if args.wav is None else None, args.wav, out)
    return 0


class _Conversation:
    """A session and where its audio goes."""

    def __init__(self, args: Any) -> None:
        from fac_lightning.generation import Decoding, Generator, Sampling
        from fac_lightning.prompts import ChatFormat

        run = load_run(args.run, args.allow)
        if run.text_tokenizer is None:
            raise ValueError(f"{args.run} has no text tokenizer (text_tokenizer/ or data.text_tokenizer)")
        self.model = run.model
        picked = Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty)
        self.decoding = Decoding(text=picked, speech=picked, max_positions=args.max_positions, seed=args.seed)
        self.generator = Generator(
            run.model,
            ChatFormat(run.text_tokenizer),
            tokenizer=run.tokenizer,
            system_prompts=run.data.get("system_prompts"),
            reply=run.reply,
        )
        spoken = run.tokenizer is not None and getattr(run.model, "head", None) is not None
        hears = getattr(run.model, "encoder", None) is not None
        text_only = args.text is not None and args.out is None
        self.mode = args.mode or f"{'S' if hears and not text_only else 'T'}2{'M' if spoken and not text_only else 'T'}"
        self.system, self.folder, self.turns = args.system, Path(args.run) / "chat", 0
        self.reset()

    def reset(self) -> None:
        """Begin a new conversation."""
        self.session = self.generator.session(mode=self.mode, system=self.system, decoding=self.decoding)

    def answer(self, text: str | None, wav: Path | None, out: Path | None = None) -> None:
        """Send one turn and print the reply; a spoken one goes to ``out`` or into the run folder."""
        audio = None if wav is None else _read(wav, self.model.geometry.sample_rate)
        reply = self.session.send(text=text, audio=audio)
        self.turns += 1
        if reply.transcript is not None:
            print(f"(heard: {reply.transcript})")
        if reply.draft is not None:
            print(f"(wrote: {reply.draft})")
        print(reply.text + ("" if reply.finished else " ... (cut at --max-positions)"))
        if reply.audio is None or reply.audio.numel() == 0:
            if out is not None:
                print(f"(no speech was said, so {out} was not written)")
            return
        from fac_lightning.evaluation.audio import write_wav

        path = out or self.folder / f"{self.turns:03d}.wav"
        write_wav(path, reply.audio.numpy(), reply.sample_rate or 0)
        print(f"({reply.audio.numel() / (reply.sample_rate or 1):.1f} s of speech: {path})")


def _converse(conversation: _Conversation) -> int:
    print(f"{conversation.mode}. Type a line, or the path of an audio file. /reset begins anew, /quit ends.")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return 0
        if line in ("/quit", "/exit"):
            return 0
        if line == "/reset":
            conversation.reset()
            print("(a new conversation)")
        elif line:
            heard = line.lower().endswith(_AUDIO)
            try:
                conversation.answer(None if heard else line, Path(line) if heard else None)
            except (ValueError, OSError) as error:
                print(f"fac: error: {error}")


def _read(path: Path, sample_rate: int) -> Any:
    import soundfile

    from fac_lightning.resampling import resample

    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise FileNotFoundError(f"{path} cannot be read as audio: {error}") from error
    return resample(audio.mean(axis=1), rate, sample_rate)
