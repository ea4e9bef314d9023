"""Weights of the frozen encoders: safetensors in and out, every key accounted for.

Three layouts are read. Our own: one tensor per parameter, named by its path joined with dots,
in our shapes (convolutions HWIO, dense layers in x out), in one file. TAEF1's original: a folder
with `taef1_encoder.safetensors` and `taef1_decoder.safetensors`. The tiny encoders of the package
("embedded") are in our own layout, with the config they fit in the file's metadata.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mogao_jax.atomic import atomic_file
from mogao_jax.config.schema import MogaoConfig, VaeConfig, VitConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.key_tables import Rule, identity, match
from mogao_jax.models import taef1
from mogao_jax.models.vae import FluxVae
from mogao_jax.models.vit import VisionTower
from mogao_jax.registry import EMBEDDED_WEIGHTS
from mogao_jax.safetensors_files import opened, read_all, rounded

EMBEDDED = "embedded"
# Fields that say how weights are used, not what they are.
_FREE_FIELDS = {"weights", "sample_posterior"}


class Loaded(NamedTuple):
    """A frozen encoder: `module.apply({"params": params}, ...)`."""

    module: nn.Module
    params: Any


def load_vae(config: VaeConfig, dtype: jnp.dtype = jnp.float32) -> Loaded:
    """The frozen VAE of a config.

    Returns:
      FluxVae or Taef1 (computing in `dtype`) and its float32 parameters.
    Raises:
      ConfigError: `weights="embedded"` and a config of another shape than the tiny VAE's.
      CheckpointError: a file that is missing, damaged, or does not fit key by key.
    """
    if config.kind == "taef1":
        return Loaded(taef1.Taef1(config, dtype), _load_taef1(config))
    return Loaded(FluxVae(config, dtype), _load_own("vae", config, vae_template(config)))


def load_vit(config: VitConfig, dtype: jnp.dtype = jnp.float32) -> Loaded:
    """The frozen vision tower of a config; as `load_vae`."""
    return Loaded(VisionTower(config, dtype), _load_own("vit", config, vit_template(config)))


@functools.cache  # tracing takes a second
def vae_template(config: VaeConfig) -> Any:
    """The autoencoder's parameter tree as shapes; nothing computed."""
    module = taef1.Taef1(config) if config.kind == "taef1" else FluxVae(config)
    return _template(module, jnp.zeros((1, 16, 16, 3)), jnp.full((1, 2), 16, jnp.int32))


@functools.cache
def vit_template(config: VitConfig) -> Any:
    """As `vae_template`, of the vision tower."""
    patches = config.merge_size**2
    pixels = jnp.zeros((1, patches, 3 * config.patch_size**2), jnp.uint8)
    positions = jnp.zeros((1, patches, 2), jnp.int32)
    return _template(VisionTower(config), pixels, positions, jnp.ones((1, patches), jnp.int32))


def save_weights(
    path: pathlib.Path | str, params: Any, config: VaeConfig | VitConfig, dtype=np.float16
) -> None:
    """Writes parameters in our own layout, rounded to `dtype`, with their config as metadata."""
    name = np.dtype(dtype).name
    flat = {k: rounded(k, np.asarray(v), name) for k, v in _flatten(params).items()}
    metadata = {"format": "mogao_jax", "config": json.dumps(dataclasses.asdict(config))}
    with atomic_file(path) as partial:
        safetensors.numpy.save_file(flat, partial, metadata)


def saved_vae_config(weights: str = EMBEDDED) -> VaeConfig:
    """The config that a VAE's weights, in our own layout, were saved with.

    Raises:
      CheckpointError: the file is missing, damaged or does not say.
    """
    values = _saved_config("vae", weights)
    return VaeConfig(**values | {"block_channels": tuple(values["block_channels"])})


def saved_vit_config(weights: str = EMBEDDED) -> VitConfig:
    """As `saved_vae_config`, of a vision tower."""
    return VitConfig(**_saved_config("vit", weights))


def weights_file(part: Literal["vae", "vit"], weights: str = EMBEDDED) -> pathlib.Path:
    """The file that `weights` of a config names."""
    return EMBEDDED_WEIGHTS.get(part) if weights == EMBEDDED else pathlib.Path(weights)


def file_digests(config: MogaoConfig) -> dict[str, str]:
    """Names the frozen encoders of a config: sha256 of their files, by part ("vae", "vit").

    Parts that are not used, or whose file is not there, are left out.
    """
    parts = {"vae": config.vae.weights}
    if config.layout.understanding_encoder == "vit":
        parts["vit"] = config.vit.weights
    return {part: d for part, weights in parts.items() if (d := _file_digest(part, weights))}


def _file_digest(part: Any, weights: str) -> str:
    path = weights_file(part, weights)
    if path.is_dir():
        try:
            own = own_file(part, weights)
        except CheckpointError:  # loading it says so
            return ""
        files = [own] if own else [path / name for name in taef1.FILES.values()]
    else:
        files = [path]
    total = hashlib.sha256()
    for file in files:
        if not file.is_file():
            return ""
        with file.open("rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()[:16]


def own_file(part: Literal["vae", "vit"], weights: str) -> pathlib.Path | None:
    """The file in our own layout that `weights` of a config means; None: it has another layout.

    Raises:
      CheckpointError: a folder with several files, none of which is meant; or a damaged file.
    """
    path = weights_file(part, weights)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        ported = path / f"{part}.safetensors"  # as `mogao port from-hf` names it
        if ported in files:
            return ported
        if {p.name for p in files} >= set(taef1.FILES.values()):
            return None
        if any(path.glob("*.safetensors.index.json")):  # shards, which ours never are
            return None
        if len(files) != 1:
            raise CheckpointError(
                f"{part}.weights: {path} holds {len(files)} .safetensors files; name the file."
            )
        path = files[0]
    # PyTorch's names for weights; ours are "kernel" and "scale".
    try:
        with opened(path) as f:
            return None if any(key.endswith(".weight") for key in f.keys()) else path  # noqa: SIM118
    except CheckpointError:  # reading it says so
        return path


def _saved_config(part: Literal["vae", "vit"], weights: str) -> dict[str, Any]:
    path = weights_file(part, weights)
    with opened(path) as f:
        metadata = f.metadata() or {}
    if "config" not in metadata:
        raise CheckpointError(f"{path} does not say what config it was made with.")
    return json.loads(metadata["config"]) | {"weights": weights}


# --------------------------------------------------------------------------------------- helpers


def _fill(
    template: Any, arrays: Mapping[str, np.ndarray], table: Sequence[Rule], place: str
) -> dict[str, Any]:
    """Parameters of the template's structure, float32, from a file's arrays.

    Raises:
      CheckpointError: listing every key that is missing, unknown, matched twice or mis-shaped.
    """
    wanted = {name: x.shape for name, x in _flatten(template).items()}
    plan = match(table, {key: x.shape for key, x in arrays.items()}, wanted, place=place)
    filled = {
        name: jnp.asarray(transform.forward(arrays[key], wanted[name]), jnp.float32)
        for key, name, transform in plan.pairs
    }
    return flax.traverse_util.unflatten_dict(filled, sep=".")


def _flatten(tree: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(tree, sep=".")


def _template(module: nn.Module, *inputs) -> Any:
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]


# --------------------------------------------------------------------------------------- reading


def _load_own(part: Literal["vae", "vit"], config: VaeConfig | VitConfig, template: Any) -> Any:
    path = own_file(part, config.weights)
    if path is None:
        raise CheckpointError(
            f"{part}.weights: {config.weights} has another layout than ours (its weights have "
            f"PyTorch's names). Bring it in once with `mogao port from-hf --{part} "
            f"{config.weights} --config=FILE --out FOLDER`, and set {part}.weights to "
            f"FOLDER/{part}.safetensors."
        )
    arrays, metadata = read_all(path)
    _check_config(part, config, metadata, path)
    return _fill(template, arrays, identity(_flatten(template)), str(path))


def _check_config(part: str, config, metadata: Mapping[str, str], path: pathlib.Path) -> None:
    """Fields that differ from those the weights were made with, if the file says."""
    if "config" not in metadata:
        return
    made_with = json.loads(metadata["config"])
    given = json.loads(json.dumps(dataclasses.asdict(config)))
    wrong = [
        f"{part}.{k} = {made_with[k]!r} (not {given[k]!r})"
        for k in given
        if k in made_with and k not in _FREE_FIELDS and made_with[k] != given[k]
    ]
    if wrong:
        whose = "the embedded weights need" if config.weights == EMBEDDED else f"{path} needs"
        raise ConfigError(f"{whose} " + ", ".join(wrong) + ".")


def _load_taef1(config: VaeConfig) -> Any:
    if config.weights == EMBEDDED:
        raise ConfigError(
            "vae.kind = 'taef1' has no embedded weights: set vae.weights to the folder that holds "
            + " and ".join(taef1.FILES.values())
            + ", or vae.kind = 'flux' for the embedded VAE."
        )
    template = vae_template(config)
    path = pathlib.Path(config.weights)
    if path.is_file() or (path / "vae.safetensors").is_file():
        return _load_own("vae", config, template)
    if not path.is_dir():
        raise CheckpointError(f"vae.weights: no file or folder {path}.")
    arrays: dict[str, np.ndarray] = {}
    for half, file in taef1.FILES.items():
        arrays |= {f"{half}.{k}": v for k, v in read_all(path / file)[0].items()}
    return _fill(template, arrays, taef1.key_table(), str(path))
