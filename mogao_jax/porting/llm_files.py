"""The small files beside a language model's tensors: its tokenizer, and what goes along with it."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

from mogao_jax.chat import SETTINGS, TEMPLATE
from mogao_jax.checkpoints import sidecar_files
from mogao_jax.config.convert import from_dict
from mogao_jax.config.schema import MogaoConfig, TokenizerConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.paths import expanded
from mogao_jax.porting.formats import mogao
from mogao_jax.porting.safetensors_reader import folder_of
from mogao_jax.porting.tensor_sources import Place, TensorSource
from mogao_jax.tokenizer import Tokenizer, load_tokenizer


class Settled(NamedTuple):
    """Which tokenizer goes along."""

    config: MogaoConfig  # with it
    facts: dict[str, Any]  # what meta says of it (`sidecar_files.describe_tokenizer`)
    notes: list[str]  # what could not be checked, for people


def settle_tokenizer(
    config: MogaoConfig, source: TensorSource | None, llm: Place | None, given: Place | None
) -> Settled:
    """Chooses the tokenizer, and compares it with what the language model brings.

    Args:
      config: with `model.vocab_size` as the embedding has rows.
      source, llm: the language model, and where it lies (a folder or a file in it); None: none.
      given: a tokenizer.json or its folder; None: the LLM's own, else the config's.
    Raises:
      CheckpointError: the tokenizer belongs to another model.
    """
    own = None if llm is None else folder_of(llm) / sidecar_files.TOKENIZER
    theirs = TokenizerConfig("file", str(own)) if own is not None and own.is_file() else None
    wanted = config.tokenizer
    if given is not None:
        wanted = TokenizerConfig("file", str(expanded(given)))
    elif theirs and wanted.kind == "file" and not (wanted.path and expanded(wanted.path).exists()):
        wanted = theirs
    text = load_tokenizer(wanted)
    rows = config.model.vocab_size
    if text.vocab_size > rows:
        raise CheckpointError(
            f"the tokenizer {wanted.path or wanted.kind!r} has {text.vocab_size} tokens, but the "
            f"embedding has {rows} rows: it belongs to another model. Give the right one with "
            "--tokenizer, or more rows with config.model.vocab_size (and "
            "config.porting.vocabulary='extend')."
        )
    facts = sidecar_files.describe_tokenizer(wanted, text)
    notes: list[str] = []
    theirs = theirs or _without_file(source)
    if theirs is not None:
        _require_same(theirs, wanted, text, facts)
    elif source is not None:
        notes = _unsure(source, wanted, text, rows, given is not None)
    return Settled(dataclasses.replace(config, tokenizer=wanted), facts, notes)


def copy_files(folder: pathlib.Path, config: MogaoConfig, llm: Place | None) -> None:
    """Copies the tokenizer and the LLM's other small files into a checkpoint's folder.

    A chat template goes along with its own tokenizer alone.
    """
    sidecar_files.keep_tokenizer(folder, config.tokenizer)
    for name in set(sidecar_files.COMPANIONS) - {SETTINGS, TEMPLATE}:
        if llm is not None and (file := folder_of(llm) / name).is_file():
            shutil.copyfile(file, folder / name)


def _require_same(
    theirs: TokenizerConfig, wanted: TokenizerConfig, text: Tokenizer, facts: Mapping[str, Any]
) -> None:
    same_file = theirs.kind == "file" and sidecar_files.file_digest(theirs) == facts["file"]
    if theirs == wanted or same_file:
        return
    other = load_tokenizer(theirs)
    if sidecar_files.tokenizer_digest(other) != facts["digest"]:
        path = f" --config.tokenizer.path={theirs.path}" if theirs.path else ""
        raise CheckpointError(
            f"{theirs.path or theirs.kind!r} is another tokenizer or chat template "
            f"({other.vocab_size} tokens) than the config's {wanted.path or wanted.kind!r} "
            f"({text.vocab_size} tokens): ids would mean other words than the LLM learned. Use its "
            f"own: --config.tokenizer.kind={theirs.kind}{path}"
        )


def _unsure(
    source: TensorSource, wanted: TokenizerConfig, text: Tokenizer, rows: int, given: bool
) -> list[str]:
    """Notes about a tokenizer that the language model brings nothing to compare with.

    Raises CheckpointError if its config.json has control ids that are none of the tokenizer's, and
    the tokenizer was not given by a person.
    """
    name = repr(wanted.path or wanted.kind)
    strange = _strange_ids(source.config, text)
    has = f"the config.json of {source.place!r} has {strange}, which the tokenizer {name}"
    if given:
        return [f"{has} has as no control token; it is taken, as --tokenizer says"] * bool(strange)
    if strange:
        raise CheckpointError(
            f"{has} ({text.vocab_size} tokens) has as no control token: it belongs to another "
            "model, and ids would mean other words than the LLM learned. Give the LLM's own with "
            "--tokenizer."
        )
    return [
        f"{source.place!r} brings no {sidecar_files.TOKENIZER}: whether {name} "
        f"({text.vocab_size:,} tokens; the embedding has {rows:,} rows) is the one it learned with "
        "was not checked. Its own is given with --tokenizer"
    ]


def _without_file(source: TensorSource | None) -> TokenizerConfig | None:
    """The tokenizer of a whole model of ours that needs no file."""
    if source is None or source.config.get("model_type") != mogao.MODEL_TYPE:
        return None
    fields = source.config.get("config")
    if not isinstance(fields, Mapping):
        return None
    try:
        theirs = from_dict(fields).tokenizer
    except ConfigError:  # of another release: nothing to go by
        return None
    return theirs if theirs.kind != "file" else None


def _strange_ids(config: Mapping[str, Any], text: Tokenizer) -> str:
    """Ids that a config.json has for control tokens and the tokenizer has not, in words; or ""."""
    ids = {name: config.get(name) for name in ("bos_token_id", "eos_token_id")}
    return ", ".join(
        f"{name} {i}"
        for name, found in ids.items()
        for i in (found if isinstance(found, list) else [found])
        if type(i) is int and i not in text.control_ids  # bool is no id
    )
