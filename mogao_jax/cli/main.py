"""The `mogao` command: finds the module of a command, and turns errors into messages.

Exit status: 0 done; 1 a defect of ours (with its traceback); 2 something the user can mend (one
message on stderr); 130 interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys

import mogao_jax
from mogao_jax.errors import MogaoError

COMMANDS = {
    "train": "train a model by a config file; resumes where the run folder left off",
    "sample": "write and draw: text to picture, questions, edits, stories, clips",
    "eval": "exact scores on the embedded world, or on pictures of your own",
    "port": "checkpoints of Qwen2, Qwen2-VL and FLUX in, and back out; inspect; diff",
    "export": "a trained model as one file, to sample from or to pass on",
    "data": "look at, check and convert data",
    "encoders": "train the tiny encoders that ship with the package",
    "profile": "speed, memory and what takes the time of a training step",
    "plan": "memory, arithmetic and time of a run on a machine you do not have",
    "bench": "what sampling costs, long runs, and the training step beside its bars",
    "report": "an HTML page about a run",
}
# Commands that stand beside what they belong to; the others are modules of this folder.
_ELSEWHERE = {
    "encoders": "mogao_jax.worlds.shapes.commands.encoders",
    "profile": "mogao_jax.tools.profile.command",
    "plan": "mogao_jax.tools.plan.command",
    "bench": "mogao_jax.tools.bench.command",
    "report": "mogao_jax.tools.report.command",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"mogao_jax {mogao_jax.__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see 'mogao --help'."
        return _fail(f"there is no command {command!r}; {hint}")
    try:
        return int(_module(command).main(rest) or 0)
    except MogaoError as e:
        return _fail(str(e))
    except KeyboardInterrupt:
        print("mogao: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (as `mogao data ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def module_name(command: str) -> str:
    """The dotted name of the module whose `main` runs the command."""
    return _ELSEWHERE.get(command, f"mogao_jax.cli.{command}")


def _module(command: str):
    """The command's module; imported only now, since most of them bring JAX along."""
    name = module_name(command)
    if importlib.util.find_spec(name) is None:
        raise MogaoError(f"the command {command!r} is not in this installation.")
    return importlib.import_module(name)


def _fail(message: str) -> int:
    print(f"mogao: {message}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "Mogao in JAX: one model that reads and writes interleaved text and images.",
            "",
            "usage: mogao COMMAND [--config=FILE] [--config.a.b=VALUE ...] [...]",
            "",
            *lines,
            "",
            "'mogao COMMAND --help' tells more; 'mogao --version' which release this is.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
