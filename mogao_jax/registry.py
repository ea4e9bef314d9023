"""Tables of kinds: what a config can name, by the rooms that bring it.

A world (`mogao_jax/worlds/`) enters its data source, its tokenizer, its encoders and its commands
here; the core looks names up and never imports a world. `mogao_jax/__init__.py` brings both
together. A value may be a string "module:attribute", which is imported when it is first asked
for: registering costs nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from mogao_jax.errors import ConfigError, MogaoError

T = TypeVar("T")


class Registry(Generic[T]):
    """Values of one sort by name.

    Args:
      what: a word for them in messages ("source kind").
      entries: values that are there from the start.
    """

    def __init__(self, what: str, entries: Mapping[str, T | str] | None = None):
        self.what = what
        self._entries: dict[str, T | str] = dict(entries or {})

    def register(self, name: str, value: T | str) -> None:
        """Adds a value, or "module:attribute" of it.

        Raises:
          ValueError: the name is taken by another value.
        """
        if self._entries.setdefault(name, value) != value:
            raise ValueError(f"{self.what} {name!r} is registered already.")

    def names(self) -> tuple[str, ...]:
        """All names, in the order of registration."""
        return tuple(self._entries)

    def get(self, name: str) -> T:
        """The value of a name.

        Raises:
          ConfigError: there is none; names the nearest.
        """
        if name not in self._entries:
            raise ConfigError(f"there is no {self.what} {name!r}{did_you_mean(name, self.names())}")
        value = self._entries[name]
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            value = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: "; did you mean ...?", or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(map(str, known))}." if known else "; there are none."


class Contents(NamedTuple):
    """What documents of a source hold, as far as packing budgets depend on it.

    Attributes:
      generates: images that are generated (noised tokens).
      reads: images that something follows (ViT tokens; clean tokens without a ViT).
      reads_back: generated or given images that later images are conditioned on (clean tokens).
    """

    generates: bool
    reads: bool = False
    reads_back: bool = False


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """A kind of data source (`config.data.sources.NAME.kind`).

    Attributes:
      options: a dataclass, the type of `config.data.sources.NAME.options`; its fields are checked
        as the config's own are.
      open: (SourceConfig, seed=, split=, images=) -> data.sources.Source.
      contents: SourceConfig -> Contents.
      needs_path: whether `path` must be set.
      is_endless: whether records are made as they are asked for, new ones in every epoch.
    """

    options: type
    open: Callable[..., Any]
    contents: Callable[[Any], Contents]
    needs_path: bool = True
    is_endless: bool = False


class Command(NamedTuple):
    """A command, or an action of one.

    Attributes:
      help: one line.
      main: "module:function", which takes the arguments and returns the exit status or None.
      usage: its flags.
    """

    help: str
    main: str
    usage: str = ""

    def run(self, argv: list[str]) -> int:
        """Imports and runs it, since most commands import JAX; returns the exit status.

        Raises:
          MogaoError: for what the user can mend; among it, a module that was not installed.
        """
        module, _, function = self.main.partition(":")
        if importlib.util.find_spec(module) is None:
            raise MogaoError(f"{module}, which runs this command, is not in this installation.")
        return int(getattr(importlib.import_module(module), function)(argv) or 0)


SOURCES: Registry[SourceKind] = Registry(
    "source kind",
    {
        "documents": "mogao_jax.data.sources:DOCUMENTS",
        "tfds": "mogao_jax.data.tfds_source:TFDS",
    },
)
TOKENIZERS: Registry[Callable[[Any], Any]] = Registry(  # TokenizerConfig -> Tokenizer
    "tokenizer kind",
    {"byte": "mogao_jax.tokenizer:load_bytes", "file": "mogao_jax.tokenizer:load_file"},
)
# Frozen encoders that ship with the package (weights="embedded"): "vae", "vit" -> file.
EMBEDDED_WEIGHTS: Registry[pathlib.Path] = Registry("embedded encoder")
# Checkpoints that ship with the package: name -> file.
CHECKPOINTS: Registry[pathlib.Path] = Registry("embedded checkpoint")
COMMANDS: Registry[Command] = Registry("command")  # mogao NAME
EVALS: Registry[Command] = Registry("benchmark")  # mogao eval NAME
DATA_ACTIONS: Registry[Command] = Registry("action")  # mogao data NAME
