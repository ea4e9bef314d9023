"""What a checkpoint carries beside its parameters: its tokenizer, and the frozen encoders.

A ported checkpoint has them in its own folder, so that the folder can be moved or handed on; a
run's folder has its tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

from mogao_jax.chat import SETTINGS, TEMPLATE, read_template
from mogao_jax.checkpoints import CHECKPOINTS
from mogao_jax.checkpoints.exported import tokenizer_digest
from mogao_jax.config.schema import MogaoConfig, TokenizerConfig
from mogao_jax.errors import CheckpointError, EnvironmentProblem
from mogao_jax.paths import expanded
from mogao_jax.tokenizer import Tokenizer, load_tokenizer

TOKENIZER, VAE, VIT = "tokenizer.json", "vae.safetensors", "vit.safetensors"


def with_carried(config: MogaoConfig, place: str | os.PathLike) -> MogaoConfig:
    """The config of a checkpoint, naming the files that lie beside it in place of its own paths.

    Args:
      place: a checkpoint's folder, or the folder of the run.
    """
    folder = pathlib.Path(place)
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder
    file = next((f / TOKENIZER for f in (folder, run) if (f / TOKENIZER).is_file()), None)
    if config.tokenizer.kind == "file" and file is not None:
        config = dataclasses.replace(config, tokenizer=TokenizerConfig("file", str(file)))
    if (folder / VAE).is_file():
        vae = dataclasses.replace(config.vae, weights=str(folder / VAE))
        config = dataclasses.replace(config, vae=vae)
    if (folder / VIT).is_file():
        vit = dataclasses.replace(config.vit, weights=str(folder / VIT))
        config = dataclasses.replace(config, vit=vit)
    return config


def describe_tokenizer(config: TokenizerConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a checkpoint's meta says of its tokenizer."""
    return {
        "digest": tokenizer_digest(tokenizer),
        "file": file_digest(config),
        "vocab_size": tokenizer.vocab_size,
    }


def check_tokenizer(
    meta: Mapping[str, Any], config: TokenizerConfig, tokenizer: Tokenizer, place: Any
) -> None:
    """Raises CheckpointError if a checkpoint was made with another tokenizer than this one.

    The file's own checksum comes first: comparing vocabularies takes seconds where they are
    large.
    """
    saved = meta.get("tokenizer")
    if not saved or (saved["file"] and saved["file"] == file_digest(config)):
        return
    if tokenizer_digest(tokenizer) != saved["digest"]:
        raise CheckpointError(
            f"{str(place)!r} was made with another tokenizer ({saved['vocab_size']} tokens) than "
            f"{config.path or config.kind!r} ({tokenizer.vocab_size} tokens): its ids would mean "
            "other words. Give the tokenizer that it was made with."
        )


def changed_encoders(saved: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """The encoders whose files are other ones than a checkpoint was made with, in words; or "".

    Args:
      saved, now: `models.encoder_weights.file_digests`; None of a checkpoint that does not say.
    """
    names = {"vae": "VAE", "vit": "vision tower"}
    return " and ".join(
        f"another {names[part]} ({theirs} then, {now[part]} now)"
        for part, theirs in (saved or {}).items()
        if part in now and now[part] != theirs
    )


def keep_tokenizer(folder: pathlib.Path, config: TokenizerConfig) -> None:
    """Copies the tokenizer's file into a folder, unless it is there; its chat template with it.

    Raises:
      CheckpointError: another tokenizer is there.
      EnvironmentProblem: it cannot be written.
    """
    if config.kind != "file":
        return
    here = TokenizerConfig("file", str(folder / TOKENIZER))
    if (folder / TOKENIZER).is_file():
        if file_digest(here) != file_digest(config):
            ours, theirs = (tokenizer_digest(load_tokenizer(c)) for c in (here, config))
            if ours != theirs:
                raise CheckpointError(
                    f"{str(folder)!r} was begun with another tokenizer than {config.path!r} (its "
                    f"own is {here.path}): ids would change their meaning. Set tokenizer.path back."
                )
        return
    file = tokenizer_file(config)
    for name in (TEMPLATE, SETTINGS):
        if file.with_name(name).is_file():
            _copy(file.with_name(name), folder / name)
    _copy(file, folder / TOKENIZER)  # last: where it is, all of it is


def _copy(source: pathlib.Path, to: pathlib.Path) -> None:
    temporary = to.with_name(f".{to.name}-{uuid.uuid4().hex}")
    try:
        try:
            shutil.copyfile(source, temporary)
            os.replace(temporary, to)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise EnvironmentProblem(f"{str(to)!r} cannot be written ({e.strerror or e}).") from e


def tokenizer_file(config: TokenizerConfig) -> pathlib.Path:
    """The tokenizer.json of a config of kind "file"."""
    path = expanded(config.path)
    return path / TOKENIZER if path.is_dir() else path


def file_digest(config: TokenizerConfig) -> str:
    """sha256 of the tokenizer's file, and its chat template; "" where there is none."""
    if config.kind != "file":
        return ""
    found = hashlib.sha256(tokenizer_file(config).read_bytes())
    chat = read_template(tokenizer_file(config))
    if chat.source is not None:
        found.update(json.dumps([chat.source, chat.tokens]).encode())
    return found.hexdigest()
