"""Our models back into others' layouts: the LLM, the frozen encoders, or the whole model.

Tensors are read, turned and written one at a time.
"""

from __future__ import annotations

import math
import pathlib
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import tqdm

from mogao_jax.atomic import atomic_directory
from mogao_jax.checkpoints import sidecar_files
from mogao_jax.checkpoints.files import Weights
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.key_tables import identity, invert, match
from mogao_jax.models import encoder_weights, taef1
from mogao_jax.models.modules import part_of
from mogao_jax.paths import expanded
from mogao_jax.porting import from_hf
from mogao_jax.porting.card_results import IMAGES, results_of
from mogao_jax.porting.formats import autoencoders, mogao, qwen2, qwen2_vl_vision
from mogao_jax.porting.mogao_checkpoint import MogaoCheckpoint
from mogao_jax.porting.safetensors_reader import SafetensorsFolder
from mogao_jax.porting.safetensors_writer import SHARD_BYTES, ExportJob
from mogao_jax.porting.streaming import LEFT, left_digest
from mogao_jax.porting.tensor_sources import InMemory, Place, TensorSource, chained, unchanged
from mogao_jax.tokenizer import load_tokenizer

PARTS = ("llm", "vit", "vae", "all")


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
    say: Callable[[str], None] | None = None,
) -> list[pathlib.Path]:
    """Writes a model, or a part of it, as others read it; returns the files written.

    Args:
      checkpoint: a run's folder, a checkpoint (ported or trained), or an exported file.
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
      say: takes messages; with it, a progress bar is drawn on stderr.
    Raises:
      CheckpointError: nothing to read, or damaged; values that are too large for `dtype`, or not
        finite; other encoders than the model was made with.
      ConfigError: a part that the model does not have.
      EnvironmentProblem: `out` exists or cannot be written, or there is no room.
    """
    model = MogaoCheckpoint(checkpoint, weights=weights)
    if allow_non_finite is None:
        # Only if they were imported and no training step has run since.
        allow_non_finite = not model.step and bool(model.porting.get("allow_nan"))
    jobs = _Exporter(model, dtype, allow_non_finite, say).jobs(part, vae_layout)
    if not jobs:
        raise ConfigError(f"{str(checkpoint)!r} has no {part}.")
    written: list[str] = []
    total = sum(job.num_bytes for job in jobs)
    options: dict[str, Any] = {"shard_bytes": shard_bytes, "allow_non_finite": allow_non_finite}
    with (
        atomic_directory(out, needed_bytes=total, say=say) as folder,
        tqdm.tqdm(
            total=total, unit="B", unit_scale=True, disable=say is None, mininterval=1
        ) as bar,
    ):
        for job in jobs:
            written += job.write(folder, advance=bar.update, **options)
        model.verify()
    return [expanded(out).absolute() / name for name in written]


class _Exporter:
    """What of a model is written: a job for each folder and file."""

    def __init__(
        self,
        model: MogaoCheckpoint,
        dtype: str | None,
        allow_non_finite: bool,
        say: Callable[[str], None] | None,
    ):
        self.model, self.config, self.dtype, self.say = model, model.model_config, dtype, say
        self.options = {"allow_non_finite": allow_non_finite}

    def jobs(self, part: str, vae_layout: str | None) -> list[ExportJob]:
        if part == "llm":
            return [self._llm()]
        self._check_encoders([p for p in ("vit", "vae") if part in (p, "all")])
        jobs = self._whole() if part == "all" else []
        if part in ("vit", "all") and self.config.layout.understanding_encoder == "vit":
            jobs.append(self._vit("vit" if part == "all" else ""))
        if part in ("vae", "all"):
            jobs += self._vae(vae_layout, "vae" if part == "all" else "")
        return jobs

    def _llm(self) -> ExportJob:
        model, config = self.model, self.config
        if config.model.fusion == "shared" and model.step:
            raise ConfigError(
                f"{model.place!r} has shared weights for text and images (model.fusion 'shared'), "
                "trained on both: no language model of its own. Use --part all."
            )
        qwen2.check_positions(config.layout)
        pairs = invert(qwen2.table(config.model), filter(qwen2.is_of_llm, model.shapes))
        record = model.porting.get("llm") or {}
        dtype, came_in = self.dtype, list(record.get("dtypes", {}))
        if not model.step and len(came_in) == 1:  # trained values are not of that dtype any more
            dtype = dtype or came_in[0]
        job = ExportJob("", "model", model, pairs, dtype)
        theirs = dict(record.get("config", {}))
        came_with = theirs.get("model_type") == "qwen2"
        special = {}
        if not came_with:
            tokenizer = load_tokenizer(config.tokenizer)
            special = {"bos_token_id": tokenizer.endoftext, "eos_token_id": tokenizer.im_end}
        rows = model.shapes["token_embedding"][0]
        made = qwen2.to_config(config.model, rows=rows, dtype=job.common_dtype, special=special)
        if came_with:
            # What it came with, which may know more (a window, dropout); ours where it matters.
            same = ("torch_dtype", "vocab_size", "tie_word_embeddings", "architectures")
            made = theirs | {name: made[name] for name in same}
            if "dtype" in theirs:  # transformers 5's name
                made["dtype"] = made["torch_dtype"]
        return job._replace(files={"config.json": made, **_companions(model)})

    def _whole(self) -> list[ExportJob]:
        model = self.model
        results = results_of(model.folder, self.config.name)
        job = ExportJob("", "model", model, unchanged(model.shapes), self.dtype)
        about: dict[str, Any] = {"step": model.step, "weights": model.weights}
        made = mogao.to_config(self.config, dtype=job.common_dtype) | about
        counts: Counter[str] = Counter()
        for name, shape in model.shapes.items():
            counts[part_of(name.split("."))] += math.prod(shape)
        card = mogao.model_card(
            self.config,
            parameters=counts,
            dtype=job.common_dtype,
            porting=model.porting,
            results=results,
            **about,
        )
        files = {"config.json": made, "README.md": card, **_companions(model)}
        jobs = [job._replace(files=files)]
        if results.images:
            jobs.append(ExportJob(IMAGES, "", model, [], files=results.images))
        return jobs

    def _vit(self, folder: str) -> ExportJob:
        vit = self.config.vit
        source = self._encoder("vit")
        left = self._left(source)
        pairs = invert(qwen2_vl_vision.table(vit), source.shapes) + unchanged(left.shapes)
        job = ExportJob(folder, "model", chained(source.place, source, left), pairs, self.dtype)
        width = left.shapes.get("merger.mlp.2.bias", (vit.merger_dim,))[0]
        if not width and self.say is not None:
            self.say(
                "note: this vision tower has no merger (vit.merger_dim is 0, and none lies beside "
                "it): its files have none either, and transformers would begin one with random "
                "numbers. `mogao port from-hf` reads them as they are."
            )
        made = qwen2_vl_vision.to_config(vit, hidden_size=width, dtype=job.common_dtype)
        return job._replace(files={"config.json": made})

    def _vae(self, layout: str | None, folder: str) -> list[ExportJob]:
        vae = self.config.vae
        source = self._encoder("vae")
        layout = layout or (self.model.porting.get("vae") or {}).get("layout") or "diffusers"
        layouts = autoencoders.LAYOUTS[vae.kind]
        if layout not in layouts:
            raise ConfigError(
                f"--vae-layout is {layout!r}; of {autoencoders.NAMES[vae.kind]} there are "
                f"{', '.join(layouts)}."
            )
        pairs = invert(autoencoders.table(vae, layout), source.shapes)
        job = ExportJob(folder, "ae", source, pairs, self.dtype)
        if layout == "original":  # a file for each half, which the keys do not name
            return [_half(job, f"{half}.", file) for half, file in taef1.FILES.items()]
        if layout == "bfl":
            return [job]
        files = {"config.json": autoencoders.to_config(vae)}
        return [job._replace(stem="diffusion_pytorch_model", files=files)]

    def _check_encoders(self, parts: list[str]) -> None:
        """Raises CheckpointError if these encoders are not those that the model was made with."""
        saved = {part: d for part, d in self.model.encoders.items() if part in parts}
        now = encoder_weights.file_digests(self.config) if saved else {}
        if changed := sidecar_files.changed_encoders(saved, now):
            raise CheckpointError(
                f"{self.model.place!r} was made with {changed}: the file was replaced, or is "
                "damaged. Put the one back that it was made with; nothing written."
            )

    def _encoder(self, part: Literal["vae", "vit"]) -> TensorSource:
        """The frozen encoder of the config, by our names."""
        config = getattr(self.config, part)
        file = encoder_weights.own_file(part, config.weights)
        if file is not None:
            source = SafetensorsFolder(file, with_config=False, **self.options)
            wanted = from_hf.encoder_shapes(config)
            match(identity(wanted), source.shapes, wanted, place=repr(str(file)))
            return source
        plan = from_hf.plan_autoencoder if part == "vae" else from_hf.plan_vision_tower
        return plan(config.weights, config, **self.options).view()

    def _left(self, vit: TensorSource) -> TensorSource:
        """What `port from-hf` left out of a vision tower: its merger, where the model has none."""
        file = pathlib.Path(vit.place).with_name(LEFT)
        if not file.is_file():
            return InMemory({}, place=str(file))
        saved = (self.model.porting.get("vit") or {}).get("left")
        if saved and file.parent == self.model.folder and left_digest(file.parent) != saved:
            raise CheckpointError(
                f"{str(file)!r} is not the file that was written with {self.model.place!r}: it "
                "was replaced, or is damaged. Put the other one back; nothing written."
            )
        return SafetensorsFolder(file, with_config=False, **self.options)


def _half(job: ExportJob, prefix: str, file: str) -> ExportJob:
    """The tensors of one half, without its name in their keys."""
    mine = [pair for pair in job.pairs if pair.key.startswith(prefix)]
    bare = [pair._replace(key=pair.key.removeprefix(prefix)) for pair in mine]
    return job._replace(stem=file.removesuffix(".safetensors"), pairs=bare)


def _companions(model: MogaoCheckpoint) -> dict[str, Any]:
    """The tokenizer and what else belongs to the LLM."""
    found: dict[str, Any] = {}
    if model.model_config.tokenizer.kind == "file":
        found[sidecar_files.TOKENIZER] = sidecar_files.tokenizer_file(model.model_config.tokenizer)
    for name in sidecar_files.COMPANIONS:
        if file := sidecar_files.beside(model.folder, name):
            found[name] = file
    return found
