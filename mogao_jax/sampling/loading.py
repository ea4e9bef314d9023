"""A trained model out of whatever holds one: an exported file, a run's folder, a checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from mogao_jax.checkpoints import exported, files
from mogao_jax.checkpoints.files import best_weights, load_params
from mogao_jax.checkpoints.sidecar_files import changed_encoders, check_tokenizer, with_carried
from mogao_jax.config.convert import from_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.models.encoder_weights import file_digests
from mogao_jax.models.modules import EncoderParams, Modules, make_modules, param_shapes
from mogao_jax.porting import from_hf
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint, is_mogao_folder
from mogao_jax.tokenizer import Tokenizer, load_tokenizer

Weights = Literal["best", "ema", "raw"]
DEMO = "demo"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that can be run. Its parameters lie on the default device."""

    modules: Modules
    params: Any
    encoders: EncoderParams
    tokenizer: Tokenizer
    name: str  # what it was loaded from, for people
    step: int  # optimizer steps done
    weights: str  # "ema" (the moving average) or "raw"

    @property
    def config(self) -> MogaoConfig:
        return self.modules.config


class _Source(NamedTuple):
    """What a checkpoint of any form says of itself, and how its parameters are read."""

    config: MogaoConfig
    rows: int | None  # of the token embedding; None: not known
    encoders: Mapping[str, str] | None  # digests; None: not known
    check_tokenizer: Callable[[MogaoConfig, Tokenizer], None]
    read: Callable[[Any], tuple[Any, int, str]]  # shapes -> (params, step, weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint whose config and tokenizer are known, and whose parameters are still unread."""

    name: str
    config: MogaoConfig
    tokenizer: Tokenizer
    read: Callable[[Any], tuple[Any, int, str]]

    def load(self) -> Model:
        """Builds the modules and reads all parameters; raises as `load_model`."""
        modules = make_modules(self.config, self.tokenizer.vocab_size)
        try:
            encoders = from_hf.load_encoders(modules)
        except CheckpointError as e:
            raise CheckpointError(
                f"an encoder of {self.name!r} cannot be loaded: {e} Where its file is now say "
                "--vae and --vit (in Python: vae=, vit=)."
            ) from e
        params, step, weights = self.read(param_shapes(self.config, modules.model))
        return Model(modules, params, encoders, self.tokenizer, self.name, step, weights)


def load_model(path: str | os.PathLike = DEMO, **arguments: Any) -> Model:
    """Loads a model with its tokenizer and its frozen encoders; arguments of `open_checkpoint`.

    Raises:
      CheckpointError: nothing there; damaged; not the model that its config describes; or made
        with another tokenizer.
      ConfigError: the config's tokenizer or encoders are missing or do not fit.
    """
    return open_checkpoint(path, **arguments).load()


def open_checkpoint(
    path: str | os.PathLike = DEMO,
    *,
    weights: Weights = "best",
    tokenizer: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    vit: str | os.PathLike | None = None,
) -> Opened:
    """Finds a checkpoint and reads what it says of itself.

    Args:
      path: "demo" (the checkpoint that ships with the package), a file written by `mogao export`,
        a run's folder (its newest whole checkpoint), one checkpoint's folder, a folder of `mogao
        port to-hf`, or ORG/NAME of one on Hugging Face's Hub.
      weights: ema (the moving average), raw, or best: ema where there is one.
      tokenizer, vae, vit: where these files are now, if not where the config says.
    Raises:
      CheckpointError, ConfigError: as `load_model`.
    """
    if weights not in ("best", "ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; choose one of best, ema, raw.")
    place = files.locate(path)
    if place.is_file():
        source = _exported_file(place, weights)
    elif is_mogao_folder(place):
        source = _folder_of_to_hf(place, weights)
    else:
        source = _checkpoint(place, weights)
    config = _moved(source.config, tokenizer, vae, vit)
    text = _tokenizer(place, config)
    source.check_tokenizer(config, text)
    _check_encoders(source.encoders, config, place, given={"vae": vae, "vit": vit})
    if source.rows not in (None, config.model.vocab_size or text.vocab_size):
        raise CheckpointError(
            f"{str(place)!r} has {source.rows} token embeddings, but {_tokenizer_name(config)} has "
            f"{text.vocab_size} tokens. Give the tokenizer that it was trained with: --tokenizer "
            "(in Python: tokenizer=)."
        )
    return Opened(str(path), config, text, source.read)


def _exported_file(place: pathlib.Path, weights: Weights) -> _Source:
    header = exported.read_header(place)
    if weights not in ("best", header.weights):
        raise CheckpointError(
            f"{str(place)!r} holds {header.weights} parameters only; export {weights} ones "
            f"from its run with `mogao export WORKDIR --weights {weights}`."
        )

    def check(config: MogaoConfig, text: Tokenizer) -> None:
        if exported.tokenizer_digest(text) != header.tokenizer:
            raise CheckpointError(
                f"{str(place)!r} was trained with another tokenizer than {_tokenizer_name(config)} "
                f"({text.vocab_size} tokens): its ids would mean other words. Give the right one "
                "with --tokenizer (in Python: tokenizer=)."
            )

    def read(shapes: Any) -> tuple[Any, int, str]:
        return exported.read_params(place, shapes), header.step, header.weights

    rows = header.shapes.get("token_embedding", (None,))[0]
    return _Source(header.config, rows, header.encoders, check, read)


def _folder_of_to_hf(place: pathlib.Path, weights: Weights) -> _Source:
    folder = MogaoCheckpoint(place, weights=weights)

    def read(shapes: Any) -> tuple[Any, int, str]:
        del shapes  # its config says
        return from_hf.load_mogao(place, folder.model_config), folder.step, folder.weights

    rows = folder.shapes.get("token_embedding", (None,))[0]
    return _Source(folder.model_config, rows, None, lambda config, text: None, read)


def _checkpoint(place: pathlib.Path, weights: Weights) -> _Source:
    meta = files.read_meta(place)

    def check(config: MogaoConfig, text: Tokenizer) -> None:
        check_tokenizer(meta, config.tokenizer, text, place)

    def read(shapes: Any) -> tuple[Any, int, str]:
        params, meta = load_params(place, weights=weights, abstract=shapes)
        return params, meta["step"], best_weights(meta, weights)

    rows = _embedding_rows(place)
    return _Source(_config(place, meta), rows, meta.get("encoders"), check, read)


def _check_encoders(
    saved: Mapping[str, str] | None,
    config: MogaoConfig,
    place: pathlib.Path,
    given: Mapping[str, Any],
) -> None:
    """Refuses encoders that a checkpoint was not trained with, unless someone asked for them."""
    now = file_digests(config)
    for wanted in (False, True):
        parts = {part: d for part, d in now.items() if (given[part] is not None) == wanted}
        if not (changed := changed_encoders(saved, parts)):
            continue
        message = f"{str(place)!r} was trained with {changed}"
        if wanted:
            logging.getLogger(__name__).warning("%s, as asked for.", message)
        else:
            raise CheckpointError(
                f"{message}: what it sees would mean something else. Use the release that wrote "
                "it, or give the file that it was trained with: --vae or --vit (in Python: vae=, "
                "vit=)."
            )


def _tokenizer(place: pathlib.Path, config: MogaoConfig) -> Tokenizer:
    try:
        return load_tokenizer(config.tokenizer)
    except ConfigError as e:
        raise ConfigError(
            f"the tokenizer of {str(place)!r} is not here: {e} Where it is now says --tokenizer "
            "(in Python: tokenizer=)."
        ) from e


def _config(place: pathlib.Path, meta: Mapping[str, Any]) -> MogaoConfig:
    """The config of a checkpoint, naming the files that it carries."""
    try:
        return with_carried(from_dict(meta["config"]), files.find_checkpoints(place)[0])
    except ConfigError as e:
        raise CheckpointError(
            f"{str(place)!r} has a config that this release does not understand: {e} It was "
            f"written by {meta['versions']}."
        ) from e


def _embedding_rows(place: pathlib.Path) -> int | None:
    """Rows of the embedding in the newest checkpoint that says; None where none does."""
    for folder in files.find_checkpoints(place):
        try:
            return int(files.saved_shapes(folder)["params"]["token_embedding"].shape[0])
        except Exception:  # noqa: BLE001, S112  (a damaged one: load_params says so)
            continue
    return None


def _moved(config: MogaoConfig, tokenizer: Any, vae: Any, vit: Any) -> MogaoConfig:
    """The config with the places of files that lie elsewhere on this machine."""
    moves: dict[str, dict[str, str]] = {}
    if tokenizer is not None:
        moves["tokenizer"] = {"kind": "file", "path": str(tokenizer)}
    moves |= {n: {"weights": str(p)} for n, p in (("vae", vae), ("vit", vit)) if p is not None}
    for section, fields in moves.items():
        moved = dataclasses.replace(getattr(config, section), **fields)
        config = dataclasses.replace(config, **{section: moved})
    return config


def _tokenizer_name(config: MogaoConfig) -> str:
    where = f" at {config.tokenizer.path!r}" if config.tokenizer.kind == "file" else ""
    return f"the tokenizer {config.tokenizer.kind!r}{where}"
