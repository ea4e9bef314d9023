"""The `mogao` command: finds the module of a command, and turns errors into messages.

Exit status: 0 done; 1 a defect of ours (with its traceback); 2 something the user can mend (one
message on stderr); 130 and 143 stopped by Ctrl-C or SIGTERM (training has saved a checkpoint).
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import pathlib
import sys

import mogao_jax
from mogao_jax import registry
from mogao_jax.errors import MogaoError
from mogao_jax.registry import Command

_HELP = """Mogao in JAX: one model that reads and writes interleaved text and images.

usage: mogao COMMAND [--config=FILE] [--config.a.b=VALUE ...] [...]

{}

'mogao COMMAND --help' tells more; 'mogao --version' which release this is."""
_OWN = {
    "train": "train a model by a config file; resumes where the run folder left off",
    "recipes": "the configs that ship with the package, by name",
    "sample": "write and draw: text to image, questions, edits, stories, clips",
    "eval": "exact scores on the embedded world, or on images of your own",
    "port": "checkpoints of Qwen2, Qwen2-VL and FLUX in, and back out; inspect; diff",
    "push": "a folder of `port to-hf` onto Hugging Face's Hub",
    "export": "a trained model as one file, to sample from or to pass on",
    "completion": "a script that completes mogao's commands and flags in bash, zsh or tcsh",
    "data": "look at, check and convert data",
}
_TOOLS = {
    "profile": "speed, memory and what takes the time of a training step",
    "plan": "memory, arithmetic and time of a run on a machine you do not have",
    "bench": "what sampling costs, long runs, and the training step beside its bars",
    "report": "an HTML page about a run",
}
COMMANDS = {
    **{n: Command(text, f"mogao_jax.cli.{n}:main") for n, text in _OWN.items()},
    **{n: Command(text, f"mogao_jax.tools.{n}.command:main") for n, text in _TOOLS.items()},
    **{name: registry.COMMANDS.get(name) for name in registry.COMMANDS.names()},  # of worlds
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
        print(_HELP.format("\n".join(lines)))
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"mogao_jax {mogao_jax.__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "see 'mogao --help'."
        return _fail(f"there is no command {name!r}; {hint}")
    skip_absent_tpus()
    try:
        return COMMANDS[name].run(rest)
    except MogaoError as e:
        return _fail(str(e))
    except KeyboardInterrupt:
        print("mogao: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (as `mogao data ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


_ACCELERATORS = ("accel*", "vfio/*", "nvidia*", "kfd", "dxg")  # in /dev, of TPUs and GPUs


def skip_absent_tpus(devices: pathlib.Path = pathlib.Path("/dev")) -> None:
    """Where libtpu is installed but no accelerator is there, JAX would look for TPUs and complain.

    (libtpu alone compiles for TPUs: `mogao plan`.)
    """
    if importlib.util.find_spec("libtpu") is None or not devices.is_dir():
        return
    if not any(next(devices.glob(pattern), None) for pattern in _ACCELERATORS):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _fail(message: str) -> int:
    print(f"mogao: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
