"""`mogao completion bash|zsh|tcsh`: completes commands, actions and flags in a shell.

    mogao completion bash > ~/.local/share/bash-completion/completions/mogao

Needs pip install "mogao_jax[completion]".
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator
from unittest import mock

from mogao_jax.cli import data, eval, port
from mogao_jax.console.flags import Parser
from mogao_jax.errors import EnvironmentProblem
from mogao_jax.registry import Command


def main(argv: list[str]) -> int:
    """Prints the script of a shell."""
    parser = Parser(
        prog="mogao completion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    shell = parser.parse_args(argv).shell
    try:
        import shtab
    except ImportError:
        raise EnvironmentProblem(
            'completion needs the package shtab: pip install "mogao_jax[completion]"'
        ) from None
    from mogao_jax.cli.main import COMMANDS  # which knows this module by name

    print(shtab.complete(_all_parsers(COMMANDS), shell))
    return 0


def _all_parsers(commands: dict[str, Command]) -> argparse.ArgumentParser:
    """One parser of everything, out of those that the commands make."""
    root = argparse.ArgumentParser("mogao")
    names = root.add_subparsers()
    actions = {
        "data": data.action_names(), "port": tuple(port.ACTIONS), "eval": tuple(eval.BENCHMARKS)
    }  # fmt: skip
    for name, command in commands.items():
        if name not in actions:
            _add(names, name, command, [])
            continue
        below = names.add_parser(name, help=command.help).add_subparsers()
        for action in actions[name]:
            _add(below, action, command, [action])
    return root


def _add(names: argparse._SubParsersAction, name: str, command: Command, argv: list[str]) -> None:
    for made in _parser_of(command, argv):
        names.add_parser(name, help=command.help, parents=[made], add_help=False)


def _parser_of(command: Command, argv: list[str]) -> Iterator[argparse.ArgumentParser]:
    """The parser that a command makes to answer --help; none where it answers by itself."""
    found: list[argparse.ArgumentParser] = []
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda self: found.append(self)),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        command.run([*argv, "--help"])
    yield from found[:1]
