"""Entry point: find the command, run it, turn expected errors into one line and an exit code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from fac_lightning import __version__
from fac_lightning.config.errors import RecipeError, UserError, did_you_mean

__all__ = ["COMMANDS", "main"]

#: command -> what it does; the code of each is ``cli/<command>_command.py``
COMMANDS = {
    "run": "run any recipe: a training, a job, or a pipeline of stages",
    "fit": "train what a recipe says",
    "check": "list every mistake of recipes, before anything is imported",
    "estimate": "memory, operations, hours and cost of a training, without running it",
    "show": "resolved recipe, parts and their sizes, rates, shapes of one batch",
    "list": "every part of every slot, with its arguments",
    "matrix": "which parts go together: combinations of them, tried",
    "chat": "talk to a trained run, by text or by audio files",
    "eval": "measure a trained run on spoken questions",
    "import": "turn a released checkpoint into a run folder",
    "export": "write a run as a released checkpoint",
    "merge": "merge a trained model with the one that it grew from",
    "pairs": "make preference pairs of a run's own answers, or as a recipe says",
    "synth": "make dialogues: run a recipe that has a job",
    "tokenize": "make the speech codes of dialogues beforehand",
    "bench": "time training, hearing, losses, merging and more, beside plainer ways",
    "data": "import, check, shard and describe dialogues",
}

OK, FAILED, USAGE, DATA, CHECKPOINT = 0, 1, 2, 3, 4


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of the command line.

    Returns:
        0 done, 2 mistakes in a recipe or in how the command was called, 3 data that is missing or damaged, 4 a
        checkpoint that cannot be used, 1 otherwise.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK
    if words[0] in ("-V", "--version"):
        print(f"fac_lightning {__version__}")
        return OK
    debug = "--debug" in words
    command, rest = words[0], [word for word in words[1:] if word != "--debug"]
    if command not in COMMANDS:
        return _complain(f"there is no command '{command}'.{did_you_mean(command, COMMANDS)}\n\n{_overview()}", USAGE)
    _tell_notes()
    try:
        module = importlib.import_module(f"fac_lightning.cli.{command}_command")
        return int(module.main(rest))
    except SystemExit as stop:  # argparse: help (0) or a wrong call (2)
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt as stop:
        return _complain(_with_notes("interrupted", stop), FAILED)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, OSError) as error:
        if debug:
            raise
        text, code = _explain(error)
        return _complain(_with_notes(text, error), code)
    except Exception as error:  # nobody expected it: the traceback is what helps
        if debug:
            raise
        traceback.print_exc()  # shows the notes too
        return _complain(f"{type(error).__name__}: {error}", FAILED)


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, RecipeError):
        return str(error), USAGE
    if isinstance(error, UserError):
        return str(error), DATA if isinstance(error.__cause__, FileNotFoundError) else USAGE
    if type(error).__name__ == "CheckpointError":  # by name: importing its room would load torch for a typing mistake
        return str(error), CHECKPOINT
    if isinstance(error, FileNotFoundError):
        return str(error) if error.filename is None else f"there is no {error.filename}", DATA
    return f"{error}\n(--debug shows where)", DATA


def _with_notes(text: str, error: BaseException) -> str:
    """What was added to an error on its way up, such as the stage that it stopped, stands below it."""
    return "\n".join([text, *getattr(error, "__notes__", [])])


def _complain(text: str, code: int) -> int:
    print(f"fac: error: {text}", file=sys.stderr)
    return code


def _tell_notes() -> None:
    """Notes of the recipe engine, such as a dropped argument, go to stderr."""
    logger = logging.getLogger("fac_lightning")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        logger.addHandler(_Notes())


class _Notes(logging.Handler):
    """Prints notes; what is said of a recipe once, though many stages of a pipeline may be made from it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.name.startswith("fac_lightning.config"):
            if text in self.said:
                return
            self.said.add(text)
        print(f"fac: {text}", file=sys.stderr)


def _overview() -> str:
    lines = [f"  fac {name:<9}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Build your own speech LLM. A recipe is a YAML file, or the name of one that comes with the library.",
            "",
            *lines,
            "",
            "  fac COMMAND --help says more. --debug shows the traceback of an error.",
            "  'python -m fac_lightning' is the same command and also finds parts in the working folder.",
        ]
    )
