"""Our models back into others' layouts: the LLM, the frozen encoders, or the whole model.

Tensors are read, turned and written one at a time.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import tqdm

from mogao_jax.atomic import atomic_directory
from mogao_jax.checkpoints import sidecar_files
from mogao_jax.config.schema import MogaoConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.models import encoder_weights
from mogao_jax.models.modules import part_of
from mogao_jax.paths import expanded
from mogao_jax.porting import from_hf
from mogao_jax.porting.export_job import ExportJob, bytes_of, write
from mogao_jax.porting.formats import flux_vae, mogao, qwen2, qwen2_vl_vision, taef1
from mogao_jax.porting.from_hf import Place
from mogao_jax.porting.model_card import model_card
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint, Weights
from mogao_jax.porting.param_specs import shapes_of, slots
from mogao_jax.porting.safetensors_file import FLOATS
from mogao_jax.porting.safetensors_folder import SafetensorsFolder
from mogao_jax.porting.safetensors_writer import SHARD_BYTES
from mogao_jax.porting.streaming import LEFT, left_digest
from mogao_jax.porting.tables import Pair, Rule, invert, match
from mogao_jax.porting.tensor_sources import (
    ChainedSource,
    InMemory,
    TensorSource,
    TransformedSource,
)
from mogao_jax.porting.transforms import SAME
from mogao_jax.tokenizer import load_tokenizer

PARTS = ("llm", "vit", "vae", "all")
DTYPES = tuple(dtype.name for dtype in FLOATS.values())
Say = Callable[[str], None]


def export(
    checkpoint: Place,
    out: Place,
    *,
    part: Literal["llm", "vit", "vae", "all"] = "all",
    dtype: str | None = None,
    vae_layout: str | None = None,
    weights: Weights = "best",
    allow_non_finite: bool | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = False,
    say: Say = lambda message: None,
) -> list[pathlib.Path]:
    """Writes a model, or a part of it, as others read it.

    Args:
      checkpoint: a run's folder, a checkpoint (ported or trained), or an exported file.
      out: the folder to make.
      part: llm: the und branch as Qwen2ForCausalLM. vit, vae: the frozen encoders. all: the whole
        model in our own names (`formats/mogao.py`), with vit/ and vae/ below it.
      dtype: one of DTYPES; None: that of the files it came from, where the checkpoint is one that
        `port from-hf` made, else as saved.
      vae_layout: bfl or diffusers (TAEF1: original or diffusers); None: as it came, else
        diffusers.
      weights: ema, raw, or best: ema where there is one.
      allow_non_finite: write NaN and infinity as they are; None: as `port from-hf` was told, of a
        checkpoint that it made, else no.
      shard_bytes: files are no larger.
    Returns:
      The files written.
    Raises:
      CheckpointError: nothing to read, or damaged; values that are too large for `dtype`, or not
        finite; other encoders than the model was made with; `out` exists.
      ConfigError: a part that the model does not have.
      EnvironmentProblem: no room, or `out` cannot be written.
    """
    model = MogaoCheckpoint(checkpoint, weights=weights)
    if allow_non_finite is None:
        # What was taken in may go out again; after training it would be news.
        allow_non_finite = not model.step and bool(model.porting.get("allow_nan"))
    opening = {"allow_non_finite": allow_non_finite}
    work: list[ExportJob] = []
    if part == "llm":
        work.append(_llm(model, dtype))
    else:
        _check_encoders(model, ("vit", "vae") if part == "all" else (part,))
    if part in ("vit", "all"):
        work += _vit(model, dtype, "vit" if part == "all" else "", opening, say)
    if part in ("vae", "all"):
        work += _vae(model, dtype, vae_layout, "vae" if part == "all" else "", opening)
    if part == "all":
        work.insert(0, _whole(model, dtype))
    if not work:
        raise ConfigError(f"{str(checkpoint)!r} has no {part}.")
    written: list[str] = []
    total = sum(bytes_of(w) for w in work)
    with atomic_directory(out, needed_bytes=total, say=say) as folder:
        bar = tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=not progress, mininterval=1)
        with bar:
            for w in work:
                written += write(folder, w, shard_bytes, allow_non_finite, bar.update)
        model.verify()
    return [expanded(out).absolute() / name for name in written]


# --------------------------------------------------------------------------------- what to write


def _llm(model: MogaoCheckpoint, dtype: str | None) -> ExportJob:
    config = model.model_config
    if config.model.fusion == "shared" and model.step:
        raise ConfigError(
            f"{model.place!r} has shared weights for text and pictures (model.fusion 'shared'), "
            "trained on both: no language model of its own. Use --part all."
        )
    qwen2.check_positions(config.layout)
    names = [name for name in model.shapes if qwen2.is_of_llm(name)]
    pairs = invert(qwen2.table(config.model), names)
    record = model.porting.get("llm") or {}
    if not model.step:  # values that have been trained are not of that dtype any more
        dtype = dtype or _recorded(record)
    rows = model.shapes["token_embedding"][0]
    dtypes = {pair.key: dtype or model.dtypes[pair.name] for pair in pairs}
    came_with = record.get("config", {}).get("model_type") == "qwen2"
    special = {} if came_with else _special_ids(config)
    made = qwen2.to_config(config.model, rows=rows, dtype=_common(dtypes), special=special)
    if came_with:
        # What it came with, which may know more (a window, dropout); ours where it matters.
        theirs = dict(record["config"])
        same = ("torch_dtype", "vocab_size", "tie_word_embeddings", "architectures")
        made = theirs | {name: made[name] for name in same}
        if "dtype" in theirs:  # transformers 5's name
            made["dtype"] = made["torch_dtype"]
    texts: dict[str, str | pathlib.Path] = {"config.json": _json(made)}
    return ExportJob("", "model", model, pairs, dtypes, texts | _companions(model))


def _whole(model: MogaoCheckpoint, dtype: str | None) -> ExportJob:
    config = model.model_config
    pairs = [Pair(name, name, SAME) for name in model.shapes]
    dtypes = {name: dtype or model.dtypes[name] for name in model.shapes}
    made = mogao.to_config(config, dtype=_common(dtypes))
    made |= {"step": model.step, "weights": model.weights}
    card = model_card(
        config,
        parameters=_counts(model),
        dtype=_common(dtypes),
        step=model.step,
        weights=model.weights,
        porting=model.porting,
    )
    texts: dict[str, str | pathlib.Path] = {"config.json": _json(made), "README.md": card}
    return ExportJob("", "model", model, pairs, dtypes, texts | _companions(model))


def _vit(
    model: MogaoCheckpoint, dtype: str | None, folder: str, opening: dict[str, Any], say: Say
) -> list[ExportJob]:
    config = model.model_config
    if config.layout.understanding_encoder != "vit":
        return []
    source = _own_encoder("vit", config, opening)
    table = qwen2_vl_vision.table(config.vit)
    left = _left(source, model, opening)
    pairs = [*invert(table, source.shapes), *(Pair(key, key, SAME) for key in left.shapes)]
    both = ChainedSource(source.place, source, left)
    dtypes = {pair.key: dtype or both.dtypes[pair.name] for pair in pairs}
    width = left.shapes.get("merger.mlp.2.bias", (config.vit.merger_dim,))[0]
    if not width:
        say(
            "note: this vision tower has no merger (vit.merger_dim is 0, and none lies beside it): "
            "its files have none either, and transformers would begin one with random numbers. "
            "`mogao port from-hf` reads them as they are."
        )
    made = qwen2_vl_vision.to_config(config.vit, hidden_size=width, dtype=_common(dtypes))
    return [ExportJob(folder, "model", both, pairs, dtypes, {"config.json": _json(made)})]


def _vae(
    model: MogaoCheckpoint,
    dtype: str | None,
    layout: str | None,
    folder: str,
    opening: dict[str, Any],
) -> list[ExportJob]:
    config = model.model_config
    source = _own_encoder("vae", config, opening)
    kind = taef1 if config.vae.kind == "taef1" else flux_vae
    layout = layout or (model.porting.get("vae") or {}).get("layout") or "diffusers"
    if layout not in kind.LAYOUTS:
        raise ConfigError(
            f"--vae-layout is {layout!r}; of {kind.NAME} there are {', '.join(kind.LAYOUTS)}."
        )
    table: Sequence[Rule]
    if config.vae.kind == "taef1":
        table, made = taef1.table(layout), taef1.to_config()
    else:
        table, made = flux_vae.table(config.vae, layout), flux_vae.to_config(config.vae)
    pairs = invert(table, source.shapes)
    dtypes = {pair.key: dtype or source.dtypes[pair.name] for pair in pairs}
    if layout == "diffusers":
        text: dict[str, str | pathlib.Path] = {"config.json": _json(made)}
        return [ExportJob(folder, "diffusion_pytorch_model", source, pairs, dtypes, text)]
    if layout == "bfl":
        return [ExportJob(folder, "ae", source, pairs, dtypes, {})]
    work = []
    for half, file in taef1.FILES.items():  # a file for each half, which the keys do not name
        half_pairs = [p for p in pairs if p.key.startswith(f"{half}.")]
        bare = [p._replace(key=p.key.removeprefix(f"{half}.")) for p in half_pairs]
        kept = {b.key: dtypes[p.key] for b, p in zip(bare, half_pairs, strict=True)}
        work.append(ExportJob(folder, file.removesuffix(".safetensors"), source, bare, kept, {}))
    return work


# ------------------------------------------------------------------------------------- helpers


def _check_encoders(model: MogaoCheckpoint, parts: Sequence[str]) -> None:
    """Raises CheckpointError if these encoders are not those that the model was made with."""
    saved = {part: digest for part, digest in model.encoders.items() if part in parts}
    now = encoder_weights.file_digests(model.model_config) if saved else {}
    if changed := sidecar_files.changed_encoders(saved, now):
        raise CheckpointError(
            f"{model.place!r} was made with {changed}: the file was replaced, or is damaged. Put "
            "the one back that it was made with; nothing written."
        )


def _own_encoder(
    part: Literal["vae", "vit"], config: MogaoConfig, opening: dict[str, Any]
) -> TensorSource:
    """The frozen encoder of a config, by our names."""
    file = encoder_weights.own_file(part, getattr(config, part).weights)
    if file is not None:
        source = SafetensorsFolder(file, with_config=False, **opening)
        wanted = shapes_of(slots(_template(part, config)))
        match([Rule(name, name) for name in wanted], source.shapes, wanted, place=repr(str(file)))
        return source
    plan_it = from_hf.plan_autoencoder if part == "vae" else from_hf.plan_vision_tower
    theirs, plan = plan_it(getattr(config, part).weights, getattr(config, part), **opening)
    return TransformedSource(theirs, plan, shapes_of(slots(_template(part, config))))


def _template(part: str, config: MogaoConfig) -> Any:
    if part == "vae":
        return encoder_weights.vae_template(config.vae)
    return encoder_weights.vit_template(config.vit)


def _left(vit: TensorSource, model: MogaoCheckpoint, opening: dict[str, Any]) -> TensorSource:
    """What `port from-hf` left aside of a vision tower: its merger, where the model has none."""
    file = pathlib.Path(vit.place).with_name(LEFT)
    if not file.is_file():
        return InMemory({}, place=str(file))
    saved = (model.porting.get("vit") or {}).get("left")
    if saved and file.parent == model.folder and left_digest(file.parent) != saved:
        raise CheckpointError(
            f"{str(file)!r} is not the file that was written with {model.place!r}: it was "
            "replaced, or is damaged. Put the other one back; nothing written."
        )
    return SafetensorsFolder(file, with_config=False, **opening)


def _recorded(record: Mapping[str, Any]) -> str | None:
    """The dtype that a part came in, if it was one."""
    dtypes = list(record.get("dtypes", {}))
    return dtypes[0] if len(dtypes) == 1 else None


def _common(dtypes: Mapping[str, str]) -> str:
    """The dtype of most tensors, for a config.json."""
    return Counter(dtypes.values()).most_common(1)[0][0]


def _counts(model: MogaoCheckpoint) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, shape in model.shapes.items():
        part = part_of(name.split("."))
        counts[part] = counts.get(part, 0) + math.prod(shape)
    return counts


def _special_ids(config: MogaoConfig) -> dict[str, int]:
    tokenizer = load_tokenizer(config.tokenizer)
    return {"bos_token_id": tokenizer.endoftext, "eos_token_id": tokenizer.im_end}


def _companions(model: MogaoCheckpoint) -> dict[str, str | pathlib.Path]:
    """The tokenizer and what else belongs to the LLM."""
    found: dict[str, str | pathlib.Path] = {}
    if model.model_config.tokenizer.kind == "file":
        found[sidecar_files.TOKENIZER] = sidecar_files.tokenizer_file(model.model_config.tokenizer)
    for name in sidecar_files.COMPANIONS:
        if file := sidecar_files.beside(model.folder, name):
            found[name] = file
    return found


def _json(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=2) + "\n"
