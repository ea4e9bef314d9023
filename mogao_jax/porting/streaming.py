"""A checkpoint to start from, written piece by piece: no model is ever in memory.

OUT/state/               the parameters, as a run's checkpoint has them (Orbax)
OUT/meta/metadata        config, fingerprint, and where everything came from ("porting")
OUT/vae.safetensors      the frozen encoders in our own layout, in the dtypes of their files
OUT/vit.safetensors
OUT/vit_left.safetensors the tower's own merger, where the config has none: for the way back
OUT/tokenizer.json       and other small files of the LLM's folder
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import tqdm

from mogao_jax.atomic import atomic_directory, require_absent
from mogao_jax.checkpoints import files, sidecar_files
from mogao_jax.checkpoints.chunked_io import PartWriter
from mogao_jax.config.checks import check_architecture
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models import encoder_weights
from mogao_jax.models.modules import count_parameters
from mogao_jax.porting import from_hf
from mogao_jax.porting.from_hf import EncoderPlan, ModelPlan
from mogao_jax.porting.llm_files import copy_files, settle_tokenizer
from mogao_jax.porting.params import Initialiser, leaf_shapes
from mogao_jax.porting.safetensors_writer import ExportJob
from mogao_jax.porting.tensor_sources import Place, TensorSource, unchanged

LEFT = "vit_left.safetensors"


class Ported(NamedTuple):
    """What `stream_checkpoint` wrote."""

    path: pathlib.Path
    parameters: dict[str, int]  # number per part, those of the frozen encoders included
    num_bytes: int  # on disk
    seconds: float
    notes: list[str]  # what a person should know (missing keys that were allowed, rounding)


def stream_checkpoint(
    out: Place,
    config: MogaoConfig,
    *,
    llm: Place | None = None,
    vit: Place | None = None,
    vae: Place | None = None,
    tokenizer: Place | None = None,
    allow_missing: Sequence[str] = (),
    allow_non_finite: bool = False,
    say: Callable[[str], None] | None = None,
) -> Ported:
    """Builds the deep-fused model around pretrained parts, as a checkpoint in a new folder.

    Everything that can be known to be wrong is found before anything is written.

    Args:
      config: what the model looks like; `config.porting` says how it begins, `config.seed`
        initialises what no file holds.
      llm: a Qwen2 checkpoint, or a whole model that `mogao port to-hf` wrote; None: initialised.
      vit, vae: the frozen encoders' files; None: as the config says, and not copied.
      tokenizer: a tokenizer.json or its folder; None: the LLM's own, else the config's.
      allow_missing: patterns of keys of the LLM that may be absent, and are then initialised.
      allow_non_finite: take NaN and infinity as they are.
      say: takes messages; with it, a progress bar is drawn on stderr.
    Raises:
      CheckpointError: files that do not fit (all keys in one message), or are damaged.
      ConfigError: the config contradicts itself or the tokenizer.
      EnvironmentProblem: `out` exists or cannot be written, or the disk is full.
    """
    started = time.monotonic()
    out = require_absent(out)
    check_architecture(config)
    options = {"allow_non_finite": allow_non_finite}
    source = None if llm is None else from_hf.open_llm(llm, **options)
    plan = from_hf.plan_model(source, config, allow_missing=allow_missing)
    rows = plan.specs["token_embedding"].shape[0]
    model = dataclasses.replace(config.model, vocab_size=rows)
    config = dataclasses.replace(config, model=model)
    encoders = _plan_encoders(config, vit, vae, options)
    config, facts, unsure = settle_tokenizer(config, source, llm, tokenizer)
    notes = [*_notes(plan, config), *unsure]
    record: dict[str, Any] = {
        "llm": None if source is None else _about(source, (p.key for p, _ in plan.pairs)),
        **{e.part: _about(e.source, (p.key for p in e.plan.pairs), e.layout) for e in encoders},
        "missing": plan.missing,
        "allow_missing": list(allow_missing),
        "allow_nan": allow_non_finite,
        "notes": notes,
    }
    jobs = [job for encoder in encoders for job in _copies(encoder)]
    leaves = leaf_shapes(plan.specs).values()
    total = sum(job.num_bytes for job in jobs)
    total += sum(math.prod(shape) * dtype.itemsize for shape, dtype in leaves)
    with (
        atomic_directory(out, needed_bytes=total, say=say) as folder,
        tqdm.tqdm(
            total=total, unit="B", unit_scale=True, disable=say is None, mininterval=1
        ) as bar,
    ):
        for job in jobs:
            job.write(folder, advance=bar.update, **options)
        fingerprint = _write_params(folder, plan, config, bar.update)
        if (folder / LEFT).is_file():
            record["vit"]["left"] = left_digest(folder)
        copy_files(folder, config, llm)
        meta = {
            "format": files.FORMAT,
            "step": 0,
            "config": to_dict(_with_files(config, out, encoders)),
            "counters": {},
            "fingerprint": fingerprint,
            "data": None,
            "versions": files.versions(),
            "tokenizer": facts,
            "encoders": encoder_weights.file_digests(_with_files(config, folder, encoders)),
            "porting": record,
        }
        files.write_folder_meta(folder, meta)
    parameters = count_parameters(plan.shapes)
    for encoder in encoders:
        parameters[f"frozen {encoder.part}"] = sum(map(math.prod, encoder.view().shapes.values()))
    num_bytes = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return Ported(out, parameters, num_bytes, time.monotonic() - started, notes)


def left_digest(folder: pathlib.Path) -> str:
    """sha256 of the tensors that were left out of the vision tower of a checkpoint's folder."""
    with (folder / LEFT).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _write_params(
    folder: pathlib.Path, plan: ModelPlan, config: MogaoConfig, advance: Callable[[int], Any]
) -> dict[str, str]:
    """Writes the state item; returns the fingerprint."""
    leaves = leaf_shapes(plan.specs).items()
    arrays = {f"params/{leaf.replace('.', '/')}": x for leaf, x in leaves}
    writer = PartWriter(folder / "state", arrays)
    initialiser = Initialiser(config, plan.shapes, jax.random.key(config.seed))
    for leaf, start, value in from_hf.pieces(plan, initialiser):
        writer.write(f"params/{leaf.replace('.', '/')}", start, value)
        advance(value.nbytes)
    return writer.finish()


def _copies(encoder: EncoderPlan) -> list[ExportJob]:
    """An encoder in our own layout, bit by bit as it was; and what of its file has no place."""
    view, config = encoder.view(), json.dumps(dataclasses.asdict(encoder.config))
    metadata = {"format": "mogao_jax", "config": config}
    jobs = [ExportJob("", encoder.part, view, unchanged(view.shapes), metadata=metadata)]
    if left := encoder.plan.left:
        stem = LEFT.removesuffix(".safetensors")
        jobs.append(ExportJob("", stem, encoder.source, unchanged(left)))
    return jobs


def _plan_encoders(
    config: MogaoConfig, vit: Place | None, vae: Place | None, options: dict[str, Any]
) -> list[EncoderPlan]:
    encoders = []
    if vae is not None:
        encoders.append(from_hf.plan_autoencoder(vae, config.vae, **options))
    if vit is not None:
        if config.layout.understanding_encoder != "vit":
            raise ConfigError(
                "config.layout.understanding_encoder is 'vae': this model has no ViT. Leave --vit "
                "out, or set it to 'vit'."
            )
        encoders.append(from_hf.plan_vision_tower(vit, config.vit, **options))
    return encoders


def _with_files(config: MogaoConfig, out: pathlib.Path, encoders: list[EncoderPlan]) -> MogaoConfig:
    """The config as stored: it names the files of the finished checkpoint."""
    tokenizer = out / sidecar_files.TOKENIZER if config.tokenizer.kind == "file" else None
    parts = {encoder.part: out / f"{encoder.part}.safetensors" for encoder in encoders}
    return sidecar_files.naming(config, parts, tokenizer)


def _about(source: TensorSource, keys: Iterable[str], layout: str = "") -> dict[str, Any]:
    return {
        "place": os.path.abspath(source.place),
        "dtypes": dict(Counter(source.dtypes[key] for key in keys)),
        "config": dict(source.config),
        "layout": layout,
    }


def _notes(plan: ModelPlan, config: MogaoConfig) -> list[str]:
    notes = []
    if plan.source is not None and not plan.source.config:
        notes.append(
            f"there is no config.json beside {plan.source.place!r}: the number of heads, "
            "rms_norm_eps, rope_theta and whether the head is tied are the config's, and were not "
            "checked"
        )
    if plan.missing:
        notes.append(f"initialised, because --allow-missing says so: {', '.join(plan.missing)}")
    notes += [f"{name}: rows from {have} on are new" for name, have in plan.grown.items()]
    if plan.source is not None and config.model.param_dtype == "bfloat16":
        rounded = [p.key for p, _ in plan.pairs if plan.source.dtypes[p.key] != "bfloat16"]
        if rounded:
            notes.append(f"{len(rounded)} tensors are rounded to bfloat16 (model.param_dtype)")
    return notes
