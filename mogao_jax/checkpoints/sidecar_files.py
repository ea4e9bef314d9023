"""What a checkpoint carries beside its parameters: its tokenizer, and the frozen encoders.

A ported checkpoint has them in its own folder, so that the folder can be moved or handed on; a
run's folder has its tokenizer, and what a ported checkpoint that it started from says of where that
came from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from mogao_jax.atomic import atomic_file, write_file
from mogao_jax.chat import SETTINGS, TEMPLATE, read_template
from mogao_jax.checkpoints import CHECKPOINTS, files
from mogao_jax.checkpoints.exported import read_header, tokenizer_digest
from mogao_jax.config.schema import MogaoConfig, TokenizerConfig
from mogao_jax.errors import CheckpointError
from mogao_jax.paths import expanded
from mogao_jax.tokenizer import Tokenizer, load_tokenizer

TOKENIZER = "tokenizer.json"
ORIGIN = "porting.json"  # in a run's folder
# Small files of the folder of the LLM that a model was built around, for the way back.
COMPANIONS = (SETTINGS, TEMPLATE, "generation_config.json")


def with_carried(config: MogaoConfig, place: str | os.PathLike) -> MogaoConfig:
    """The config of a checkpoint, or of a run's folder, naming the files that lie beside it."""
    folder = pathlib.Path(place)
    files_of = {part: folder / f"{part}.safetensors" for part in ("vae", "vit")}
    encoders = {part: file for part, file in files_of.items() if file.is_file()}
    tokenizer = beside(folder, TOKENIZER) if config.tokenizer.kind == "file" else None
    return naming(config, encoders, tokenizer)


def naming(
    config: MogaoConfig, encoders: Mapping[str, pathlib.Path], tokenizer: pathlib.Path | None = None
) -> MogaoConfig:
    """The config with these files in place of its own: of "vae", "vit", and the tokenizer."""
    changed: dict[str, Any] = {
        part: dataclasses.replace(getattr(config, part), weights=str(file))
        for part, file in encoders.items()
    }
    if tokenizer is not None:
        changed["tokenizer"] = TokenizerConfig("file", str(tokenizer))
    return dataclasses.replace(config, **changed)


def beside(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """A file of this name in a checkpoint's folder, or in that of its run; None: in neither."""
    run = folder.parent.parent if folder.parent.name == CHECKPOINTS else folder
    return next((f / name for f in (folder, run) if (f / name).is_file()), None)


def origin(meta: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """What `mogao port from-hf` recorded of the files that a model began with; {}: it did not.

    Of a checkpoint, ported or of a run that started from one (`keep_origin`).
    """
    if "porting" in meta:
        return meta["porting"]
    file = beside(folder, ORIGIN)
    if file is None:
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise CheckpointError(
            f"{str(file)!r}, which says what the run began with, cannot be read ({e}). Copy it "
            "from the checkpoint's run again, or take it away."
        ) from None
    return record if isinstance(record, dict) else {}


def keep_origin(run: pathlib.Path, start: str | os.PathLike) -> None:
    """Notes in a run's folder what the checkpoint that it starts from was built around.

    So that the way back out (`mogao port to-hf`) knows after training what it knew before: the
    LLM's own config.json, where its files came from, and its small files; of an exported file, what
    it says itself. `start` is `train.init_from`. Raises CheckpointError for an exported file that
    cannot be read, EnvironmentProblem where the folder cannot be written.
    """
    place = files.locate(start)
    companions: list[pathlib.Path | None] = []
    if place.is_file():
        record = dict(read_header(place).porting)
    else:
        try:
            folder = files.find_checkpoints(place)[0]
        except CheckpointError:
            return  # a folder of `mogao port to-hf`, which does not say
        record = origin(files.read_meta(place), folder)
        companions = [beside(folder, name) for name in COMPANIONS]
    if not record:
        return
    for file in companions:
        if file is not None and not (run / file.name).exists():
            _copy(file, run / file.name)
    write_file(run / ORIGIN, json.dumps(record, indent=2) + "\n")


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

    The file's own checksum comes first: comparing vocabularies takes seconds where they are large.
    """
    saved = meta.get("tokenizer")
    if not saved or (saved["file"] and saved["file"] == file_digest(config)):
        return
    if tokenizer_digest(tokenizer) != saved["digest"]:
        raise CheckpointError(
            f"{str(place)!r} was made with another tokenizer or chat template "
            f"({saved['vocab_size']} tokens) than "
            f"{config.path or config.kind!r} ({tokenizer.vocab_size} tokens): its ids would mean "
            "other words. Give the tokenizer that it was made with."
        )


def changed_encoders(saved: Mapping[str, str] | None, now: Mapping[str, str]) -> str:
    """Names the encoders whose file digests differ from the checkpoint's, in words; or "".

    Both are `models.encoder_weights.file_digests`; None of a checkpoint that does not say.
    """
    names = {"vae": "VAE", "vit": "vision tower"}
    return " and ".join(
        f"another {names[part]} ({theirs} then, {now[part]} now)"
        for part, theirs in (saved or {}).items()
        if part in now and now[part] != theirs
    )


def keep_tokenizer(folder: pathlib.Path, config: TokenizerConfig) -> None:
    """Copies the tokenizer's file into a folder, unless it is there; its chat template with it.

    Raises CheckpointError if another is there, EnvironmentProblem if it cannot be written.
    """
    if config.kind != "file":
        return
    here = TokenizerConfig("file", str(folder / TOKENIZER))
    if not (folder / TOKENIZER).is_file():
        file = tokenizer_file(config)
        for name in (TEMPLATE, SETTINGS):
            if file.with_name(name).is_file():
                _copy(file.with_name(name), folder / name)
        _copy(file, folder / TOKENIZER)  # last: where it is, all of it is
    elif file_digest(here) != file_digest(config):
        ours, theirs = (tokenizer_digest(load_tokenizer(c)) for c in (here, config))
        if ours != theirs:
            raise CheckpointError(
                f"{str(folder)!r} was begun with another tokenizer or chat template than "
                f"{config.path!r} (its own is {here.path}): ids would change their meaning. "
                "Set tokenizer.path back."
            )


def _copy(source: pathlib.Path, to: pathlib.Path) -> None:
    with atomic_file(to) as partial:
        shutil.copyfile(source, partial)


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
