"""A checkpoint to start from, written piece by piece: no model is ever in memory.

OUT/state/               the parameters, as a run's checkpoint has them (Orbax)
OUT/meta/metadata        config, fingerprint, and where everything came from ("porting")
OUT/vae.safetensors      the frozen encoders in our own layout, in the dtypes of their files
OUT/vit.safetensors
OUT/vit_left.safetensors the tower's own merger, where the config has none: for the way back
OUT/tokenizer.json       and other small files of the LLM's folder
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import tqdm

from mogao_jax.atomic import atomic_directory, require_absent
from mogao_jax.checkpoints import files, sidecar_files
from mogao_jax.checkpoints.chunked_io import PartWriter
from mogao_jax.config.checks import check_architecture
from mogao_jax.config.convert import to_dict
from mogao_jax.config.schema import MogaoConfig, TokenizerConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models import encoder_weights
from mogao_jax.models.modules import count_parameters
from mogao_jax.porting import from_hf
from mogao_jax.porting.formats import flux_vae, taef1
from mogao_jax.porting.from_hf import ModelPlan, Place
from mogao_jax.porting.initialising import Initialiser
from mogao_jax.porting.llm_files import copy_files, settle_tokenizer
from mogao_jax.porting.param_specs import slots
from mogao_jax.porting.safetensors_writer import ShardWriter
from mogao_jax.porting.tables import Plan
from mogao_jax.porting.tensor_sources import TensorSource

LEFT = "vit_left.safetensors"

Say = Callable[[str], None]


class Ported(NamedTuple):
    """What `stream_checkpoint` wrote.

    Attributes:
      path: the checkpoint.
      parameters: number of parameters per part, those of the frozen encoders included.
      num_bytes: on disk.
      seconds: that it took.
      notes: what a person should know (missing keys that were allowed, rounding).
    """

    path: pathlib.Path
    parameters: dict[str, int]
    num_bytes: int
    seconds: float
    notes: list[str]


class Encoder(NamedTuple):
    """A frozen encoder to be copied."""

    part: str  # "vae" or "vit"
    source: TensorSource
    plan: Plan
    config: Any
    layout: str


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
    progress: bool = False,
    say: Say = lambda message: None,
) -> Ported:
    """Builds the deep-fused model around pretrained parts, as a checkpoint on disk.

    Everything that can be known to be wrong is found before anything is written.

    Args:
      out: the folder to make.
      config: what the model looks like; `config.porting` says how it begins, `config.seed`
        initialises what no file holds.
      llm: a Qwen2 checkpoint, or a whole model that `mogao port to-hf` wrote; None: initialised.
      vit, vae: the frozen encoders' files; None: as the config says, and not copied.
      tokenizer: a tokenizer.json or its folder; None: the LLM's own, else the config's.
      allow_missing: patterns of keys of the LLM that may be absent, and are then initialised.
      allow_non_finite: take NaN and infinity as they are.
      progress: draw a bar on stderr.
      say: for messages.
    Raises:
      CheckpointError: files that do not fit (all keys in one message), or are damaged; `out`
        exists.
      ConfigError: the config contradicts itself or the tokenizer.
      EnvironmentProblem: the disk is full, or `out` cannot be written.
    """
    started = time.monotonic()
    out = require_absent(out)
    check_architecture(config)
    options = {"allow_non_finite": allow_non_finite}
    source = None if llm is None else from_hf.open_llm(llm, **options)
    plan = from_hf.plan_model(source, config, allow_missing=allow_missing)
    rows = plan.slots["token_embedding"].shape[0]
    model = dataclasses.replace(config.model, vocab_size=rows)
    config = dataclasses.replace(config, model=model)
    encoders = _plan_encoders(config, vit, vae, options)
    config, facts, unsure = settle_tokenizer(config, source, llm, tokenizer)
    stored = _with_files(config, out, encoders)
    notes = [*_notes(plan, config), *unsure]
    record: dict[str, Any] = {
        "llm": None if source is None else _about(source, [p.key for p, _ in plan.pairs]),
        **{e.part: _about(e.source, [p.key for p in e.plan.pairs], e.layout) for e in encoders},
        "missing": plan.missing,
        "allow_missing": list(allow_missing),
        "allow_nan": allow_non_finite,
        "notes": notes,
    }
    parameters = count_parameters(plan.shapes)
    with atomic_directory(out, needed_bytes=_num_bytes(plan, encoders), say=say) as folder:
        with _bar(_num_bytes(plan, encoders), progress) as advance:
            for encoder in encoders:
                parameters[f"frozen {encoder.part}"] = _copy_encoder(folder, encoder, advance)
                if encoder.plan.left:
                    record[encoder.part] |= {"left": left_digest(folder)}
            fingerprint = _write_params(folder, plan, config, advance)
        copy_files(folder, config, llm)
        meta = {
            "format": files.FORMAT,
            "step": 0,
            "config": to_dict(stored),
            "counters": {},
            "fingerprint": fingerprint,
            "data": None,
            "versions": files.versions(),
            "tokenizer": facts,
            "encoders": encoder_weights.file_digests(_with_files(config, folder, encoders)),
            "porting": record,
        }
        files.write_folder_meta(folder, meta)
    num_bytes = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    return Ported(out, parameters, num_bytes, time.monotonic() - started, notes)


def left_digest(folder: pathlib.Path) -> str:
    """sha256 of what lies aside of the vision tower in a checkpoint's folder."""
    with (folder / LEFT).open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ------------------------------------------------------------------------------------- writing


def _write_params(
    folder: pathlib.Path, plan: ModelPlan, config: MogaoConfig, advance: Callable[[int], Any]
) -> dict[str, str]:
    """Writes the state item; returns the fingerprint."""
    shapes = from_hf.leaf_shapes(plan.slots)
    writer = PartWriter(
        folder / "state", {f"params/{leaf.replace('.', '/')}": x for leaf, x in shapes.items()}
    )
    initialiser = Initialiser(config, plan.shapes, jax.random.key(config.seed))
    for leaf, start, value in from_hf.pieces(plan, initialiser):
        writer.write(f"params/{leaf.replace('.', '/')}", start, value)
        advance(value.nbytes)
    return writer.finish()


def _copy_encoder(folder: pathlib.Path, encoder: Encoder, advance: Callable[[int], Any]) -> int:
    """Writes an encoder in our own layout, bit by bit as it was; returns its parameter count."""
    source, plan = encoder.source, encoder.plan
    shapes = slots(_template(encoder))
    writer = ShardWriter(
        folder,
        {p.name: (shapes[p.name].shape, source.dtypes[p.key]) for p in plan.pairs},
        stem=encoder.part,
        shard_bytes=2**62,
        metadata={
            "format": "mogao_jax",
            "config": json.dumps(dataclasses.asdict(encoder.config)),
        },
    )
    for key, name, transform in plan.pairs:
        value = transform.forward(source.read(key), shapes[name].shape)
        writer.write(name, value)
        advance(value.nbytes)
    writer.finish()
    if plan.left:
        kept = {key: (source.shapes[key], source.dtypes[key]) for key in plan.left}
        rest = ShardWriter(folder, kept, stem=LEFT.removesuffix(".safetensors"))
        for key in plan.left:
            rest.write(key, source.read(key))
        rest.finish()
    return sum(math.prod(shapes[p.name].shape) for p in plan.pairs)


# ------------------------------------------------------------------------------------ planning


def _plan_encoders(
    config: MogaoConfig, vit: Place | None, vae: Place | None, options: dict[str, Any]
) -> list[Encoder]:
    encoders = []
    if vae is not None:
        source, plan = from_hf.plan_autoencoder(vae, config.vae, **options)
        layout = (taef1 if config.vae.kind == "taef1" else flux_vae).layout_of(source)
        encoders.append(Encoder("vae", source, plan, config.vae, layout))
    if vit is not None:
        if config.layout.understanding_encoder != "vit":
            raise ConfigError(
                "config.layout.understanding_encoder is 'vae': this model has no ViT. Leave --vit "
                "out, or set it to 'vit'."
            )
        source, plan = from_hf.plan_vision_tower(vit, config.vit, **options)
        encoders.append(Encoder("vit", source, plan, config.vit, "qwen2_vl"))
    return encoders


def _with_files(config: MogaoConfig, out: pathlib.Path, encoders: list[Encoder]) -> MogaoConfig:
    """The config as stored: it names the files of the finished checkpoint."""
    changed: dict[str, Any] = {}
    for encoder in encoders:
        weights = str(out / f"{encoder.part}.safetensors")
        changed[encoder.part] = dataclasses.replace(encoder.config, weights=weights)
    if config.tokenizer.kind == "file":
        changed["tokenizer"] = TokenizerConfig("file", str(out / sidecar_files.TOKENIZER))
    return dataclasses.replace(config, **changed)


def _about(source: TensorSource, keys: list[str], layout: str = "") -> dict[str, Any]:
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
    if plan.grown:
        notes += [f"{name}: rows from {have} on are new" for name, have in plan.grown.items()]
    if plan.source is not None and config.model.param_dtype == "bfloat16":
        rounded = [p.key for p, _ in plan.pairs if plan.source.dtypes[p.key] != "bfloat16"]
        if rounded:
            notes.append(f"{len(rounded)} tensors are rounded to bfloat16 (model.param_dtype)")
    return notes


def _num_bytes(plan: ModelPlan, encoders: list[Encoder]) -> int:
    """Of everything that will be written, before compression."""
    total = sum(
        math.prod(shape) * dtype.itemsize
        for shape, dtype in from_hf.leaf_shapes(plan.slots).values()
    )
    for encoder in encoders:
        source, keys = encoder.source, [p.key for p in encoder.plan.pairs] + encoder.plan.left
        total += sum(
            math.prod(source.shapes[key]) * (4 if source.dtypes[key] == "float32" else 2)
            for key in keys
        )
    return total


def _template(encoder: Encoder) -> Any:
    make = encoder_weights.vae_template if encoder.part == "vae" else encoder_weights.vit_template
    return make(encoder.config)


@contextlib.contextmanager
def _bar(num_bytes: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    with tqdm.tqdm(
        total=num_bytes, unit="B", unit_scale=True, disable=not shown, mininterval=1.0
    ) as bar:
        yield bar.update
