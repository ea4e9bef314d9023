"""Parameters from others' checkpoints: plans of what comes from where, and small models whole.

Planning reads headers only (and a head that should be the embedding, to see whether it is). A plan
is carried out in memory (here) or piece by piece into a checkpoint (`streaming.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mogao_jax.config.schema import MogaoConfig, VaeConfig, VitConfig
from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.key_tables import Pair, Plan, Rule, Shape, identity, match
from mogao_jax.models import encoder_weights, taef1
from mogao_jax.models.modules import EncoderParams, Modules, make_model, param_shapes
from mogao_jax.models.vit import stacked
from mogao_jax.paths import expanded
from mogao_jax.porting.formats import autoencoders, mogao, qwen2, qwen2_vl_vision
from mogao_jax.porting.params import Initialiser, ParamSpec, leaf_shapes, param_specs, shapes_of
from mogao_jax.porting.safetensors_reader import SafetensorsFolder, require_floats
from mogao_jax.porting.tensor_sources import (
    Place,
    TensorSource,
    TensorView,
    chained,
    prefixed,
    read_in_parts,
    transformed,
)


class Chunk(NamedTuple):
    """A part of a leaf, ready to be put in its place."""

    leaf: str  # the dotted path
    start: int  # where on the leaf's first axis it begins
    value: np.ndarray  # [n, ...] with the leaf's other axes, in its dtype; [] for a scalar leaf


class ModelPlan(NamedTuple):
    """How a whole model comes about."""

    shapes: Any  # of the parameter tree (`models.modules.param_shapes`)
    specs: dict[str, ParamSpec]  # of all parameters, by name
    source: TensorSource | None  # of the file's tensors; None: everything is initialised
    pairs: list[tuple[Pair, list[str]]]  # tensor -> our names (two for a branch that is copied)
    fresh: dict[str, list[int] | None]  # leaf -> those layers that no tensor fills; None: all
    missing: list[str]  # names that no tensor fills although it should, as `allow_missing` says
    grown: dict[str, int]  # names whose tensor has fewer rows, and how many it has


class EncoderPlan(NamedTuple):
    """Where a frozen encoder's tensors come from."""

    part: str  # "vae" or "vit"
    source: TensorSource  # of the file's tensors
    plan: Plan  # tensor -> our names; nothing may be missing
    config: VaeConfig | VitConfig  # the part's section of the config
    layout: str  # of the file

    def view(self) -> TensorView:
        """The tensors by our names, shaped as ours."""
        return transformed(self.source, self.plan.pairs, encoder_shapes(self.config))

    def load(self) -> dict[str, Any]:
        """The parameters, float32."""
        view = self.view()
        arrays = {name: jnp.asarray(view.read(name), jnp.float32) for name in view.shapes}
        return traverse_util.unflatten_dict(arrays, sep=".")


# --------------------------------------------------------------------------- parts, in memory


def load_llm(
    place: Place | TensorSource, config: MogaoConfig, *, allow_missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The und branch of a Qwen2 checkpoint, of files or of tensors in memory with Qwen2's keys.

    The part of the model's parameter tree that comes from it, in `model.param_dtype`, laid out as
    `model.scan_layers` says: token_embedding, layers.../und, final_norm, lm_head (untied). The
    config's `model` section must describe the language model; a CheckpointError lists every key or
    field that does not fit.
    """
    source = open_llm(place)
    shapes = _model_shapes(config, source)
    specs = {name: x for name, x in param_specs(shapes).items() if qwen2.is_of_llm(name)}
    plan = _match_llm(source, config, specs, allow_missing)
    if grown := _grown(plan, source, specs):
        raise ConfigError(
            f"config.model.vocab_size has {config.model.vocab_size} rows, {source.place!r} has "
            f"{max(grown.values())}, and load_llm makes no new ones: build_mogao does, or set "
            "vocab_size to what the file has."
        )
    pairs = [(pair, [pair.name]) for pair in plan.pairs]
    model = ModelPlan(shapes, specs, source, pairs, {}, [], {})
    return _collect(model, pieces(model))


def load_vision_tower(place: Place | TensorSource, vit: VitConfig) -> dict[str, Any]:
    """Parameters of `models.vit.VisionTower`, float32, out of Qwen2-VL's files."""
    return plan_vision_tower(place, vit).load()


def load_autoencoder(place: Place | TensorSource, vae: VaeConfig) -> dict[str, Any]:
    """Parameters of `models.vae.FluxVae` or `models.taef1.Taef1`, float32, of either layout."""
    return plan_autoencoder(place, vae).load()


def load_encoders(modules: Modules) -> EncoderParams:
    """As `models.modules.load_encoders`, of others' layouts as well as ours."""
    config = modules.config
    if encoder_weights.own_file("vae", config.vae.weights) is None:
        vae = load_autoencoder(config.vae.weights, config.vae)
    else:
        vae = encoder_weights.load_vae(config.vae).params
    if modules.vit is None:
        return EncoderParams(vae, None)
    if encoder_weights.own_file("vit", config.vit.weights) is None:
        vit = load_vision_tower(config.vit.weights, config.vit)
    else:
        vit = encoder_weights.load_vit(config.vit).params
    return EncoderParams(vae, stacked(vit) if config.model.scan_layers else vit)


def load_mogao(place: Place | TensorSource, config: MogaoConfig) -> dict[str, Any]:
    """A whole model out of a folder of `mogao port to-hf`, in `model.param_dtype`.

    Raises CheckpointError: a tensor that is missing, of another shape, or not expected.
    """
    source = open_llm(place)
    model = plan_model(source, config)
    if model.fresh or model.grown:
        lacking = ", ".join([*model.fresh, *model.grown][:5])
        raise CheckpointError(
            f"{source.place!r} does not hold all of the model that its config.json describes: "
            f"{lacking} would be new. Copy the folder again."
        )
    return _collect(model, pieces(model))


def build_mogao(
    llm: Place | TensorSource | None,
    config: MogaoConfig,
    key: jax.Array,
    *,
    allow_missing: Sequence[str] = (),
) -> dict[str, Any]:
    """A whole model at its start, in memory: the und branch from an LLM, the rest initialised.

    The parameter tree (unboxed), in `model.param_dtype`. `config.porting` says how the gen branch,
    AdaLN and the head begin; without an LLM everything is initialised as in training, from `key`.
    """
    source = None if llm is None else open_llm(llm)
    model = plan_model(source, config, allow_missing=allow_missing)
    return _collect(model, pieces(model, Initialiser(config, model.shapes, key)))


# ------------------------------------------------------------------------------------ planning


def open_llm(place: Place | TensorSource, **options: Any) -> TensorSource:
    """A language model's tensors, with keys as Qwen2ForCausalLM (or our own format) has them."""
    return qwen2.of_the_model_alone(_open(place, **options))


def open_vae(place: Place | TensorSource, **options: Any) -> TensorSource:
    """An autoencoder's tensors; TAEF1's folder of two files is one source."""
    if isinstance(place, str | os.PathLike):
        folder = expanded(place)
        halves = {half: folder / file for half, file in taef1.FILES.items()}
        if folder.is_dir() and any(file.is_file() for file in halves.values()):
            parts = [
                prefixed(SafetensorsFolder(file, **options), {}, prefix=f"{half}.")
                for half, file in halves.items()
            ]
            return chained(str(folder), *parts)
    return _open(place, **options)


def plan_model(
    source: TensorSource | None, config: MogaoConfig, *, allow_missing: Sequence[str] = ()
) -> ModelPlan:
    """What fills every parameter of a config's model.

    The source is a Qwen2 LLM, or a whole model in our own format (`formats/mogao.py`); None: none.
    """
    shapes = _model_shapes(config, source)
    specs = param_specs(shapes)
    if source is None:
        return ModelPlan(shapes, specs, None, [], _fresh(specs, set()), [], {})
    if mogao.is_mogao(source):
        mogao.check_config(source, config)
        plan = _match(identity(specs), source, shapes_of(specs), allow_missing=allow_missing)
        pairs = [(pair, [pair.name]) for pair in plan.pairs]
    else:
        plan = _match_llm(source, config, specs, allow_missing)
        pairs = [(pair, _copies(pair.name, config, specs)) for pair in plan.pairs]
    fresh = _fresh(specs, {name for _, names in pairs for name in names})
    grown = _grown(plan, source, specs)
    return ModelPlan(shapes, specs, source, pairs, fresh, plan.missing, grown)


def plan_vision_tower(place: Place | TensorSource, vit: VitConfig, **options: Any) -> EncoderPlan:
    """The vision tower's tensors, and where each goes."""
    source = qwen2_vl_vision.tower(_open(place, **options))
    qwen2_vl_vision.check_config(source, vit)
    plan = _match(qwen2_vl_vision.table(vit), source, encoder_shapes(vit))
    require_floats(source, plan.left)
    return EncoderPlan("vit", source, plan, vit, "qwen2_vl")


def plan_autoencoder(place: Place | TensorSource, vae: VaeConfig, **options: Any) -> EncoderPlan:
    """The autoencoder's tensors, and where each goes."""
    source = open_vae(place, **options)
    if "model_type" not in source.config:  # else that of a language model in the same folder
        autoencoders.check_config(source, vae)
    layout = autoencoders.layout_of(source, vae)
    plan = _match(autoencoders.table(vae, layout), source, encoder_shapes(vae))
    return EncoderPlan("vae", source, plan, vae, layout)


def encoder_shapes(config: VaeConfig | VitConfig) -> dict[str, Shape]:
    """Our name -> shape of a frozen encoder's parameters."""
    if isinstance(config, VaeConfig):
        return shapes_of(param_specs(encoder_weights.vae_template(config)))
    return shapes_of(param_specs(encoder_weights.vit_template(config)))


# -------------------------------------------------------------------------------- carrying out


def pieces(model: ModelPlan, initialiser: Initialiser | None = None) -> Iterator[Chunk]:
    """Everything that a plan says, each tensor read once, no more than one at a time in memory."""
    if initialiser is not None:
        for leaf, value in initialiser.leaves(list(model.fresh)):
            layers = model.fresh[leaf]
            if layers is None:
                yield Chunk(leaf, 0, value)
            for i in layers or ():
                yield Chunk(leaf, i, value[i : i + 1])
    elif model.fresh or model.grown:
        raise ValueError("a plan with fresh leaves or rows needs an initialiser")
    for pair, names in model.pairs:
        assert model.source is not None
        yield from _of_tensor(model.source, pair, [model.specs[name] for name in names])
        if initialiser is not None and pair.name in model.grown:
            # Rows of new tokens: of the spread that the file's own rows have.
            have = model.grown[pair.name]
            sample = model.source.read_rows(pair.key, 0, min(have, 4096)).astype(np.float32)
            for name in names:
                spec = model.specs[name]
                rows = initialiser.rows(spec, have, spec.shape[0], float(sample.std()))
                yield Chunk(spec.leaf, have, rows)


def _of_tensor(source: TensorSource, pair: Pair, specs: Sequence[ParamSpec]) -> Iterator[Chunk]:
    """One tensor, for parameters of one shape: a branch and its copy."""
    shape, dtype = specs[0].shape, specs[0].dtype
    if pair.transform.by_rows and specs[0].layer is None:
        for start, rows in read_in_parts(source, pair.key):
            for spec in specs:
                yield Chunk(spec.leaf, start, rows.astype(dtype))
        return
    # A copy: order in memory, too, is that of ours.
    value = np.array(pair.transform.forward(source.read(pair.key), shape), dtype=dtype, order="C")
    for spec in specs:
        yield Chunk(spec.leaf, spec.layer or 0, value if spec.layer is None else value[None])


def _collect(model: ModelPlan, parts: Iterator[Chunk]) -> dict[str, Any]:
    arrays: dict[str, np.ndarray] = {}
    shapes = leaf_shapes(model.specs)
    for leaf, start, value in parts:
        target = arrays.setdefault(leaf, np.empty(*shapes[leaf]))
        target[start : start + len(value)] = value
    return traverse_util.unflatten_dict({k: jnp.asarray(x) for k, x in arrays.items()}, sep=".")


def _open(place: Place | TensorSource, **options: Any) -> TensorSource:
    """A file or folder as a source; a source as it is."""
    if isinstance(place, str | os.PathLike):
        return SafetensorsFolder(place, **options)
    return place


def _match(
    table: Sequence[Rule], source: TensorSource, wanted: Mapping[str, Shape], **options: Any
) -> Plan:
    plan = match(table, source.shapes, wanted, place=repr(source.place), **options)
    require_floats(source, [pair.key for pair in plan.pairs])
    return plan


def _match_llm(
    source: TensorSource,
    config: MogaoConfig,
    specs: Mapping[str, ParamSpec],
    allow_missing: Sequence[str],
) -> Plan:
    """Pairs an LLM's tensors with the parameters that come from it."""
    qwen2.check_config(source, config.model)
    qwen2.check_positions(config.layout)
    longer = ("token_embedding", "lm_head") if config.porting.vocabulary == "extend" else ()
    table = qwen2.table(config.model)
    wanted = {name: spec.shape for name, spec in specs.items() if qwen2.is_of_llm(name)}
    plan = _match(table, source, wanted, allow_missing=allow_missing, longer=longer)
    qwen2.check_tied_head(source, config.model)
    return plan


def _model_shapes(config: MogaoConfig, source: TensorSource | None) -> Any:
    """Shapes of the parameter tree; a config may leave the vocabulary's size to the source."""
    shapes = {} if source is None else source.shapes
    tables = [shapes[k] for k in ("model.embed_tokens.weight", "token_embedding") if k in shapes]
    rows = config.model.vocab_size or (tables[0][0] if tables else 1)
    return param_shapes(config, make_model(config, rows))


def _fresh(specs: Mapping[str, ParamSpec], filled: set[str]) -> dict[str, list[int] | None]:
    """Leaves that are not filled, and which layers of those that are filled in part."""
    fresh: dict[str, list[int] | None] = {}
    partly = {specs[name].leaf for name in filled}
    for name, spec in specs.items():
        if name not in filled:
            whole = spec.layer is None or spec.leaf not in partly
            fresh[spec.leaf] = None if whole else [*(fresh.get(spec.leaf) or []), spec.layer or 0]
    return fresh


def _copies(name: str, config: MogaoConfig, specs: Mapping[str, ParamSpec]) -> list[str]:
    """Our names that one tensor of the LLM fills: a layer's und branch, and its gen branch."""
    twin = name.replace(".und.", ".gen.")
    copied = config.porting.gen_branch == "copy" and twin != name and twin in specs
    return [name, twin] if copied else [name]


def _grown(plan: Plan, source: TensorSource, specs: Mapping[str, ParamSpec]) -> dict[str, int]:
    rows = {pair.name: source.shapes[pair.key][0] for pair in plan.pairs}
    same = ("token_embedding", "lm_head")
    return {n: rows[n] for n in same if n in rows and rows[n] < specs[n].shape[0]}
