"""The parameters that a new run starts from: `train.init_from`."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mogao_jax.checkpoints import exported, files
from mogao_jax.checkpoints.files import load_params
from mogao_jax.checkpoints.sidecar_files import changed_encoders, check_tokenizer
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError
from mogao_jax.models.encoder_weights import file_digests
from mogao_jax.porting import from_hf
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint, is_mogao_folder
from mogao_jax.tokenizer import Tokenizer, load_tokenizer
from mogao_jax.training import compatibility

# What decides an LLM's parameters beyond their shapes. For a model trained here (step > 0) that is
# all of `model` but what shapes show.
_OF_AN_LLM = ("model.rms_norm_eps", "model.rope_theta", "model.tie_embeddings")
_SHAPES_SAY = ("model.scan_layers", "model.vocab_size", "model.embedding_init")


def load_initial_params(
    config: MogaoConfig,
    abstract: Any,
    tokenizer: Tokenizer,
    *,
    report: Callable[[str], None] | None = None,
) -> Any:
    """The parameters of `config.train.init_from`: the moving average where there is one.

    Args:
      config: of the new run.
      abstract: its parameters as ShapeDtypeStructs with shardings.
      report: for messages (default: a log warning).
    Returns:
      Parameters as `abstract` says.
    Raises:
      CheckpointError: nothing there that can be read; of another model, with the fields or
        arrays that differ; or made with another tokenizer.
    """
    try:
        place = files.locate(config.train.init_from)
    except CheckpointError as e:
        raise CheckpointError(f"train.init_from: {e}") from None
    if is_mogao_folder(place):
        return _of_folder(MogaoCheckpoint(place), config, abstract, tokenizer)
    if place.is_file():
        header = exported.read_header(place)
        if exported.tokenizer_digest(tokenizer) != header.tokenizer:
            raise _other_tokenizer(place, config)
        _check(to_dict(header.config), header.step, config)
        _report_encoders(header.encoders, config, report)
        params = exported.read_params(place, abstract)
        return jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), params, abstract)
    meta = files.read_meta(place)
    check_tokenizer(meta, config.tokenizer, tokenizer, place)
    _check(meta["config"], meta["step"], config)
    _report_encoders(meta.get("encoders"), config, report)
    return load_params(place, abstract=abstract, report=report)[0]


def _of_folder(
    folder: MogaoCheckpoint, config: MogaoConfig, abstract: Any, tokenizer: Tokenizer
) -> Any:
    """The parameters of a folder of `mogao port to-hf`."""
    theirs = load_tokenizer(folder.model_config.tokenizer)
    if exported.tokenizer_digest(theirs) != exported.tokenizer_digest(tokenizer):
        raise _other_tokenizer(folder.folder, config)
    _check(to_dict(folder.model_config), folder.step, config)
    params = from_hf.load_mogao(folder.folder, config)
    return jax.tree.map(
        lambda x, a: jax.device_put(x.astype(a.dtype), a.sharding), params, abstract
    )


def _other_tokenizer(place: pathlib.Path, config: MogaoConfig) -> CheckpointError:
    return CheckpointError(
        f"train.init_from: {str(place)!r} was made with another tokenizer than "
        f"{config.tokenizer.path or config.tokenizer.kind!r}: ids would mean other words."
    )


def _report_encoders(
    saved: Mapping[str, str] | None,
    config: MogaoConfig,
    report: Callable[[str], None] | None,
) -> None:
    """Reports other encoders: they are allowed, because training adapts to their features."""
    if changed := changed_encoders(saved, file_digests(config)):
        (report or logging.getLogger(__name__).warning)(
            f"train.init_from: {config.train.init_from!r} was made with {changed}; it has to "
            "learn what their features mean."
        )


def _check(saved: Mapping[str, Any], step: int, config: MogaoConfig) -> None:
    """Compares what decides the parameters' meaning beyond their shapes."""
    refused, _ = compatibility.differences(saved, config)
    if step:
        wrong = [d for d in refused if d.field.startswith("model.") and d.field not in _SHAPES_SAY]
    else:
        wrong = [d for d in refused if d.field in _OF_AN_LLM]
    if wrong:
        raise CheckpointError(
            f"train.init_from: {config.train.init_from!r} is of another model: "
            f"{'; '.join(map(str, wrong))} (checkpoint -> now). Set these fields as it has them."
        )
