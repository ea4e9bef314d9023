"""The `mogao` command: finds the module of a command, and turns errors into messages.

Exit status: 0 done; 1 a defect of ours (with its traceback); 2 something the user can mend (one
message on stderr); 130 interrupted.
"""

from __future__ import annotations

import difflib
import os
import sys

import mogao_jax
from mogao_jax import registry
from mogao_jax.errors import MogaoError
from mogao_jax.registry import Command

_OWN = {
    "train": ("train a model by a config file; resumes where the run folder left off", "cli.train"),
    "sample": ("write and draw: text to image, questions, edits, stories, clips", "cli.sample"),
    "eval": ("exact scores on the embedded world, or on images of your own", "cli.eval"),
    "port": ("checkpoints of Qwen2, Qwen2-VL and FLUX in, and back out; inspect; diff", "cli.port"),
    "export": ("a trained model as one file, to sample from or to pass on", "cli.export"),
    "data": ("look at, check and convert data", "cli.data"),
    "profile": (
        "speed, memory and what takes the time of a training step",
        "tools.profile.command",
    ),
    "plan": (
        "memory, arithmetic and time of a run on a machine you do not have",
        "tools.plan.command",
    ),
    "bench": (
        "what sampling costs, long runs, and the training step beside its bars",
        "tools.bench.command",
    ),
    "report": ("an HTML page about a run", "tools.report.command"),
}
COMMANDS = {
    **{name: Command(text, f"mogao_jax.{module}:main") for name, (text, module) in _OWN.items()},
    **{name: registry.COMMANDS.get(name) for name in registry.COMMANDS.names()},  # of worlds
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
    return _run(COMMANDS[command], rest)


def _run(command: Command, argv: list[str]) -> int:
    """Runs a command; an error that the user can mend becomes a message and a status."""
    try:
        return command.run(argv)
    except MogaoError as e:
        return _fail(str(e))
    except KeyboardInterrupt:
        print("mogao: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (as `mogao data ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(message: str) -> int:
    print(f"mogao: {message}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
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
