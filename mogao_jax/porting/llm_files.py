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
from mogao_jax.porting.from_hf import Place
from mogao_jax.porting.safetensors_folder import folder_of
from mogao_jax.porting.tensor_sources import TensorSource
from mogao_jax.tokenizer import Tokenizer, load_tokenizer


class Settled(NamedTuple):
    """Which tokenizer goes along.

    Attributes:
      config: with it.
      facts: what meta says of it (`sidecar_files.describe_tokenizer`).
      notes: what nothing could be held against, for people.
    """

    config: MogaoConfig
    facts: dict[str, Any]
    notes: list[str]


def settle_tokenizer(
    config: MogaoConfig, source: TensorSource | None, llm: Place | None, given: Place | None
) -> Settled:
    """Chooses the tokenizer, and holds it against what the language model brings.

    Args:
      config: with `model.vocab_size` as the embedding has rows.
      source, llm: the language model, and where it lies (a folder or a file in it); None: none.
      given: a tokenizer.json or its folder; None: the LLM's own, else the config's.
    Raises:
      CheckpointError: the tokenizer belongs to another model.
    """
    own = None if llm is None else folder_of(llm) / sidecar_files.TOKENIZER
    own = own if own is not None and own.is_file() else None
    wanted = config.tokenizer
    if given is not None:
        wanted = TokenizerConfig("file", str(expanded(given)))
    elif own is not None and wanted.kind == "file" and not _exists(wanted.path):
        wanted = TokenizerConfig("file", str(own))
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
    theirs = TokenizerConfig("file", str(own)) if own is not None else _without_file(source)
    if theirs is not None:
        _require_same(theirs, wanted, text, facts)
    elif source is not None:
        strange = _strange_ids(source.config, text)
        name = repr(wanted.path or wanted.kind)
        if strange and given is None:
            raise CheckpointError(
                f"the config.json of {source.place!r} has {strange}, which the tokenizer {name} "
                f"({text.vocab_size} tokens) has as no control token: it belongs to another "
                "model, and ids would mean other words than the LLM learned. Give the LLM's own "
                "with --tokenizer."
            )
        if strange:
            notes.append(
                f"the config.json of {source.place!r} has {strange}, which the tokenizer {name} "
                "has as no control token; it is taken, as --tokenizer says"
            )
        if given is None:
            notes.append(
                f"{source.place!r} brings no {sidecar_files.TOKENIZER}: whether {name} "
                f"({text.vocab_size:,} tokens; the embedding has {rows:,} rows) is the one it "
                "learned with was not checked. Its own is given with --tokenizer"
            )
    return Settled(dataclasses.replace(config, tokenizer=wanted), facts, notes)


def copy_files(folder: pathlib.Path, config: MogaoConfig, llm: Place | None) -> None:
    """Copies the tokenizer and the LLM's other small files into a checkpoint's folder.

    A chat template goes along with its own tokenizer alone.
    """
    sidecar_files.keep_tokenizer(folder, config.tokenizer)
    for name in set(sidecar_files.COMPANIONS) - {SETTINGS, TEMPLATE}:
        if llm is not None and (file := folder_of(llm) / name).is_file():
            shutil.copyfile(file, folder / name)


# ---------------------------------------------------------------------------------------- helpers


def _require_same(
    theirs: TokenizerConfig, wanted: TokenizerConfig, text: Tokenizer, facts: Mapping[str, Any]
) -> None:
    if theirs == wanted or (
        theirs.kind == "file" and sidecar_files.file_digest(theirs) == facts["file"]
    ):
        return
    other = load_tokenizer(theirs)
    if sidecar_files.tokenizer_digest(other) != facts["digest"]:
        path = f" --config.tokenizer.path={theirs.path}" if theirs.path else ""
        raise CheckpointError(
            f"{theirs.path or theirs.kind!r} is another tokenizer or chat template "
            f"({other.vocab_size} tokens) than the config's "
            f"{wanted.path or wanted.kind!r} ({text.vocab_size} tokens): ids "
            "would mean other words than the LLM learned. Use its own: "
            f"--config.tokenizer.kind={theirs.kind}{path}"
        )


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
    strange = []
    for name in ("bos_token_id", "eos_token_id"):
        found = config.get(name)
        for i in found if isinstance(found, list) else [found]:
            if isinstance(i, int) and not isinstance(i, bool) and i not in text.control_ids:
                strange.append(f"{name} {i}")
    return ", ".join(strange)


def _exists(path: str) -> bool:
    return bool(path) and expanded(path).exists()
