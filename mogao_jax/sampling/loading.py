"""A trained model out of whatever holds one: an exported file, a run's folder, a checkpoint."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Literal

from mogao_jax.checkpoints import exported, files
from mogao_jax.checkpoints.load_params import best_weights, load_params
from mogao_jax.config.convert import from_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.models.system import EncoderParams, System, make_system, param_shapes
from mogao_jax.tokenizer import Tokenizer, load_tokenizer

Weights = Literal["best", "ema", "raw"]
DEMO = "demo"
_DEMO_FILE = pathlib.Path(__file__).resolve().parents[1] / "assets" / "demo.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model that can be run.

    Attributes:
      system, params, encoders: as everywhere; parameters lie on the default device.
      tokenizer: the config's.
      name: what it was loaded from, for people.
      step: optimizer steps done.
      weights: "ema" (the moving average) or "raw".
    """

    system: System
    params: Any
    encoders: EncoderParams
    tokenizer: Tokenizer
    name: str
    step: int
    weights: str

    @property
    def config(self) -> MogaoConfig:
        return self.system.config


def load_model(
    path: str | os.PathLike = DEMO,
    *,
    weights: Weights = "best",
    tokenizer: str | os.PathLike | None = None,
    vae: str | os.PathLike | None = None,
    vit: str | os.PathLike | None = None,
) -> Model:
    """Loads a model with its tokenizer and its frozen encoders.

    Args:
      path: "demo" (the checkpoint that ships with the package), a file written by `mogao export`,
        a run's folder (its newest whole checkpoint), or one checkpoint's folder.
      weights: ema (the moving average), raw, or best: ema where there is one.
      tokenizer, vae, vit: where these files are now, if not where the config says.
    Raises:
      CheckpointError: nothing there; damaged; or not the model that its config describes, or
        made with another tokenizer.
      ConfigError: the config's tokenizer or encoders are missing or do not fit.
    """
    if weights not in ("best", "ema", "raw"):
        raise ConfigError(f"weights is {weights!r}; choose one of best, ema, raw.")
    place = _find(path)
    if place.is_file():
        header = exported.read_header(place)
        if weights not in ("best", header.weights):
            raise CheckpointError(
                f"{str(place)!r} holds {header.weights} parameters only; export {weights} ones "
                f"from its run with `mogao export WORKDIR --weights {weights}`."
            )
        config, rows = header.config, header.shapes.get("token_embedding", (None,))[0]
    else:
        header = None
        meta = files.read_meta(place)
        config, rows = from_dict(meta["config"]), _embedding_rows(place)
    config = _moved(config, tokenizer, vae, vit)
    text = load_tokenizer(config.tokenizer)
    if header is not None and exported.tokenizer_digest(text) != header.tokenizer:
        raise CheckpointError(
            f"{str(place)!r} was trained with another tokenizer than that of its config "
            f"({_tokenizer_name(config)}, {text.vocab_size} tokens): its ids would mean other "
            "words. Give the right tokenizer.json."
        )
    if rows not in (None, config.model.vocab_size or text.vocab_size):
        raise CheckpointError(
            f"{str(place)!r} has {rows} token embeddings, but its tokenizer "
            f"({_tokenizer_name(config)}) has {text.vocab_size} tokens. Give the tokenizer.json "
            "that it was trained with."
        )
    system, encoders = make_system(config, text.vocab_size)
    shapes = param_shapes(config, system.model)
    if header is not None:
        params, step, which = exported.read_params(place, shapes), header.step, header.weights
    else:
        params, meta = load_params(place, weights=weights, abstract=shapes)
        step, which = meta["step"], best_weights(meta, weights)
    name = DEMO if str(path) == DEMO else str(path)
    return Model(system, params, encoders, text, name, step, which)


def _find(path: str | os.PathLike) -> pathlib.Path:
    if str(path) == DEMO:
        if not _DEMO_FILE.is_file():
            raise CheckpointError(
                "the demo checkpoint is not in this installation. Train it with `mogao train "
                "--config=configs/demo.py --workdir runs/demo` and give --checkpoint runs/demo, "
                "or give another checkpoint."
            )
        return _DEMO_FILE
    place = pathlib.Path(path).expanduser().absolute()
    if not place.exists():
        raise CheckpointError(
            f"there is no checkpoint {str(path)!r}: give 'demo', a file written by `mogao export`, "
            "a run's folder, or one checkpoint in it."
        )
    return place


def _embedding_rows(place: pathlib.Path) -> int | None:
    """Rows of the embedding in the newest checkpoint that says; None where none does."""
    for folder in files.find_checkpoints(place):
        try:
            return int(files.saved_shapes(folder)["params"]["token_embedding"].shape[0])
        except Exception:  # noqa: BLE001  (a damaged one: load_params says so)
            continue
    return None


def _moved(config: MogaoConfig, tokenizer: Any, vae: Any, vit: Any) -> MogaoConfig:
    """The config with the places of files that lie elsewhere on this machine."""
    if tokenizer is not None:
        moved = dataclasses.replace(config.tokenizer, kind="file", path=str(tokenizer))
        config = dataclasses.replace(config, tokenizer=moved)
    if vae is not None:
        moved_vae = dataclasses.replace(config.vae, weights=str(vae))
        config = dataclasses.replace(config, vae=moved_vae)
    if vit is not None:
        moved_vit = dataclasses.replace(config.vit, weights=str(vit))
        config = dataclasses.replace(config, vit=moved_vit)
    return config


def _tokenizer_name(config: MogaoConfig) -> str:
    return config.tokenizer.path or config.tokenizer.kind
