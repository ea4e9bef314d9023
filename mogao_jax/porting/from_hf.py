"""Parameters out of others' checkpoints: plans of what comes from where, and small models whole.

`plan_model` and the planners of the encoders read headers only (and a head that should be the
embedding, to see whether it is). What they return is carried out
either in memory (here) or piece by piece into a checkpoint (`streaming.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mogao_jax.config.schema import MogaoConfig, VaeConfig, VitConfig
from mogao_jax.errors import ConfigError
from mogao_jax.models import encoder_weights
from mogao_jax.models.modules import make_model, param_shapes
from mogao_jax.paths import expanded
from mogao_jax.porting.formats import flux_vae, mogao, qwen2, qwen2_vl_vision, taef1
from mogao_jax.porting.initialising import Initialiser, unflatten
from mogao_jax.porting.param_specs import ParamSpec, shapes_of, slots
from mogao_jax.porting.safetensors_folder import SafetensorsFolder, require_floats
from mogao_jax.porting.tables import Pair, Plan, Rule, match
from mogao_jax.porting.tensor_sources import ChainedSource, PrefixedSource, TensorSource

Place = str | os.PathLike
ROWS_BYTES = 64 * 2**20  # larger tensors are read in parts, where their rows are rows of ours


class Chunk(NamedTuple):
    """A part of a leaf, ready to be put in its place.

    Attributes:
      leaf: the dotted path.
      start: where on the leaf's first axis it begins.
      value: [n, ...] with the leaf's other axes, in the leaf's dtype; [] for a scalar leaf.
    """

    leaf: str
    start: int
    value: np.ndarray


class ModelPlan(NamedTuple):
    """How a whole model comes about.

    Attributes:
      shapes: of the parameter tree (`models.modules.param_shapes`).
      slots: all parameters, by name.
      source: of the file's tensors; None: everything is initialised.
      pairs: tensor -> our names (two for a branch that is copied).
      fresh: leaves that are initialised -> those layers of them that no tensor fills; None: all.
      missing: names that no tensor fills although it should, as `allow_missing` says.
      grown: names whose tensor has fewer rows, and how many it has.
    """

    shapes: Any
    slots: dict[str, ParamSpec]
    source: TensorSource | None
    pairs: list[tuple[Pair, list[str]]]
    fresh: dict[str, list[int] | None]
    missing: list[str]
    grown: dict[str, int]


# --------------------------------------------------------------------------- parts, in memory


def load_llm(
    place: Place | TensorSource, config: MogaoConfig, *, allow_missing: Sequence[str] = ()
) -> dict[str, Any]:
    """The und branch of a Qwen2 checkpoint.

    Args:
      place: a folder or file of safetensors, or tensors in memory with Qwen2's keys.
      config: its `model` section must describe the language model.
    Returns:
      The part of the model's parameter tree that comes from it, in `model.param_dtype`, laid out
      as `model.scan_layers` says: token_embedding, layers.../und, final_norm, lm_head (untied).
    Raises:
      CheckpointError: listing every key or field that does not fit.
    """
    source = open_llm(place)
    tree = _shapes(config, source)
    found = _llm_slots(slots(tree))
    plan = match_llm(source, config, found, allow_missing)
    pairs = [(pair, [pair.name]) for pair in plan.pairs]
    grown = _grown(plan, source, found)
    if grown:
        raise ConfigError(
            f"config.model.vocab_size has {config.model.vocab_size} rows, {source.place!r} has "
            f"{max(grown.values())}, and load_llm makes no new ones: build_mogao does, or set "
            "vocab_size to what the file has."
        )
    model = ModelPlan(tree, found, source, pairs, {}, [], grown)
    return _collect(model, pieces(model))


def load_vision_tower(place: Place | TensorSource, vit: VitConfig) -> dict[str, Any]:
    """Parameters of `models.vit.VisionTower`, float32, out of Qwen2-VL's files."""
    source, plan = plan_vision_tower(place, vit)
    return _encoder(source, plan, encoder_weights.vit_template(vit))


def load_autoencoder(place: Place | TensorSource, vae: VaeConfig) -> dict[str, Any]:
    """Parameters of `models.vae.FluxVae` or `models.taef1.Taef1`, float32, of either layout."""
    source, plan = plan_autoencoder(place, vae)
    return _encoder(source, plan, encoder_weights.vae_template(vae))


def build_mogao(
    llm: Place | TensorSource | None,
    config: MogaoConfig,
    key: jax.Array,
    *,
    allow_missing: Sequence[str] = (),
) -> dict[str, Any]:
    """A whole model at its start, in memory: the und branch from an LLM, the rest initialised.

    Args:
      llm: see `load_llm`; None: everything is initialised as in training.
      config: `config.porting` says how the gen branch, AdaLN and the head begin.
      key: of what is initialised.
    Returns:
      The parameter tree (unboxed), in `model.param_dtype`.
    """
    source = None if llm is None else open_llm(llm)
    model = plan_model(source, config, allow_missing=allow_missing)
    return _collect(model, pieces(model, Initialiser(config, model.shapes, key)))


# ------------------------------------------------------------------------------------ planning


def open_tensors(place: Place | TensorSource, **options: Any) -> TensorSource:
    """A file or folder as a source; a source as it is."""
    if isinstance(place, str | os.PathLike):
        return SafetensorsFolder(place, **options)
    return place


def open_llm(place: Place | TensorSource, **options: Any) -> TensorSource:
    """As `open_tensors`, with keys as Qwen2ForCausalLM (or our own format) has them."""
    return qwen2.of_the_model_alone(open_tensors(place, **options))


def open_vae(place: Place | TensorSource, **options: Any) -> TensorSource:
    """As `open_tensors`; TAEF1's folder of two files is one source."""
    if isinstance(place, str | os.PathLike):
        folder = expanded(place)
        halves = {half: folder / file for half, file in taef1.FILES.items()}
        if folder.is_dir() and any(file.is_file() for file in halves.values()):
            parts = [
                PrefixedSource(SafetensorsFolder(file, **options), "", prefix=f"{half}.")
                for half, file in halves.items()
            ]
            return ChainedSource(str(folder), *parts)
    return open_tensors(place, **options)


def match_llm(
    source: TensorSource,
    config: MogaoConfig,
    found: dict[str, ParamSpec],
    allow_missing: Sequence[str] = (),
) -> Plan:
    """Pairs an LLM's tensors with the slots that come from it."""
    qwen2.check_config(source, config.model)
    qwen2.check_positions(config.layout)
    longer = ("token_embedding", "lm_head") if config.porting.vocabulary == "extend" else ()
    plan = match(
        qwen2.table(config.model),
        source.shapes,
        shapes_of(found),
        place=repr(source.place),
        allow_missing=allow_missing,
        longer=longer,
    )
    require_floats(source, [pair.key for pair in plan.pairs])
    qwen2.check_tied_head(source, config.model)
    return plan


def plan_model(
    source: TensorSource | None, config: MogaoConfig, *, allow_missing: Sequence[str] = ()
) -> ModelPlan:
    """What fills every parameter of the model that a config describes.

    Args:
      source: a Qwen2 LLM, or a whole model in our own format (`formats/mogao.py`); None: none.
    """
    tree = _shapes(config, source)
    found = slots(tree)
    if source is None:
        return ModelPlan(tree, found, None, [], _fresh(found, set()), [], {})
    if mogao.is_mogao(source):
        mogao.check_config(source, config)
        plan = match(
            mogao.table(found),
            source.shapes,
            shapes_of(found),
            place=repr(source.place),
            allow_missing=allow_missing,
        )
        require_floats(source, [pair.key for pair in plan.pairs])
        pairs = [(pair, [pair.name]) for pair in plan.pairs]
    else:
        plan = match_llm(source, config, _llm_slots(found), allow_missing)
        pairs = [(pair, _copies(pair.name, config, found)) for pair in plan.pairs]
    filled = {name for _, names in pairs for name in names}
    fresh, grown = _fresh(found, filled), _grown(plan, source, found)
    return ModelPlan(tree, found, source, pairs, fresh, plan.missing, grown)


def plan_vision_tower(
    place: Place | TensorSource, vit: VitConfig, **options: Any
) -> tuple[TensorSource, Plan]:
    """The tower's tensors, and where each goes: nothing of a frozen encoder may be missing."""
    source = qwen2_vl_vision.tower(open_tensors(place, **options))
    qwen2_vl_vision.check_config(source, vit)
    template = encoder_weights.vit_template(vit)
    return source, _plan_encoder(qwen2_vl_vision.table(vit), source, template)


def plan_autoencoder(
    place: Place | TensorSource, vae: VaeConfig, **options: Any
) -> tuple[TensorSource, Plan]:
    """The autoencoder's tensors, and where each goes."""
    source = open_vae(place, **options)
    theirs = "model_type" not in source.config  # else that of a language model in the same folder
    if vae.kind == "taef1":
        if theirs:
            taef1.check_config(source)
        table = taef1.table(taef1.layout_of(source))
    else:
        if theirs:
            flux_vae.check_config(source, vae)
        table = flux_vae.table(vae, flux_vae.layout_of(source))
    return source, _plan_encoder(table, source, encoder_weights.vae_template(vae))


def _plan_encoder(table: Sequence[Rule], source: TensorSource, template: Any) -> Plan:
    plan = match(table, source.shapes, shapes_of(slots(template)), place=repr(source.place))
    require_floats(source, [pair.key for pair in plan.pairs])
    return plan


# -------------------------------------------------------------------------------- carrying out


def pieces(model: ModelPlan, initialiser: Initialiser | None = None) -> Iterator[Chunk]:
    """Everything that a plan says, each tensor read once, no more than one at a time in memory."""
    if model.fresh and initialiser is None:
        raise ValueError("a plan with fresh leaves needs an initialiser")
    for leaf, value in initialiser.leaves(list(model.fresh)) if initialiser else ():
        layers = model.fresh[leaf]
        if layers is None:
            yield Chunk(leaf, 0, value)
        for i in layers or ():
            yield Chunk(leaf, i, value[i : i + 1])
    for pair, names in model.pairs:
        assert model.source is not None
        yield from _of_tensor(model, pair, names)
        if pair.name in model.grown:
            assert initialiser is not None
            yield from _more_rows(model, pair, names, initialiser)


def _of_tensor(model: ModelPlan, pair: Pair, names: list[str]) -> Iterator[Chunk]:
    source = model.source
    assert source is not None
    shape = source.shapes[pair.key]
    first = model.slots[names[0]]
    row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
    if pair.transform.by_rows and first.layer is None and row_bytes * shape[0] > ROWS_BYTES:
        step = max(1, ROWS_BYTES // row_bytes)
        for start in range(0, shape[0], step):
            rows = source.read_rows(pair.key, start, min(shape[0], start + step))
            for name in names:
                yield Chunk(model.slots[name].leaf, start, rows.astype(model.slots[name].dtype))
        return
    tensor = source.read(pair.key)
    have = (shape[0], *first.shape[1:]) if pair.name in model.grown else first.shape
    # A copy: order in memory, too, is that of ours.
    value = np.array(pair.transform.forward(tensor, have), dtype=first.dtype, order="C")
    del tensor
    for name in names:  # of one shape and dtype: a branch and its copy
        slot = model.slots[name]
        yield Chunk(slot.leaf, slot.layer or 0, value if slot.layer is None else value[None])


def _more_rows(model, pair, names, initialiser) -> Iterator[Chunk]:
    """Rows of new tokens: of the spread that the file's own rows have."""
    have = model.grown[pair.name]
    sample = model.source.read_rows(pair.key, 0, min(have, 4096)).astype(np.float32)
    spread = float(sample.std())
    for name in names:
        slot = model.slots[name]
        yield Chunk(slot.leaf, have, initialiser.rows(slot, have, slot.shape[0], spread))


def _collect(model: ModelPlan, parts: Iterator[Chunk]) -> dict[str, Any]:
    arrays: dict[str, np.ndarray] = {}
    shapes = leaf_shapes(model.slots)
    for leaf, start, value in parts:
        shape, dtype = shapes[leaf]
        target = arrays.setdefault(leaf, np.empty(shape, dtype))
        target[start : start + len(value)] = value
    return unflatten({leaf: jnp.asarray(x) for leaf, x in arrays.items()})


def leaf_shapes(found: dict[str, ParamSpec]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Leaf -> (shape, dtype) of the arrays that slots lie in."""
    layers: dict[str, int] = {}
    for slot in found.values():
        if slot.layer is not None:
            layers[slot.leaf] = max(layers.get(slot.leaf, 0), slot.layer + 1)
    return {
        slot.leaf: (
            slot.shape if slot.layer is None else (layers[slot.leaf], *slot.shape),
            jnp.dtype(slot.dtype),
        )
        for slot in found.values()
    }


def _encoder(source: TensorSource, plan: Plan, template: Any) -> dict[str, Any]:
    shapes = slots(template)
    return unflatten(
        {
            name: jnp.asarray(transform.forward(source.read(key), shapes[name].shape), jnp.float32)
            for key, name, transform in plan.pairs
        }
    )


# ------------------------------------------------------------------------------------- helpers


def _shapes(config: MogaoConfig, source: TensorSource | None) -> Any:
    rows = config.model.vocab_size or _rows(source)
    return param_shapes(config, make_model(config, rows))


def _rows(source: TensorSource | None) -> int:
    """Rows of a source's embedding, for a config that leaves them open."""
    shapes = source.shapes if source is not None else {}
    for key in ("model.embed_tokens.weight", "token_embedding"):
        if key in shapes:
            return shapes[key][0]
    return 1


def _llm_slots(found: dict[str, ParamSpec]) -> dict[str, ParamSpec]:
    return {name: slot for name, slot in found.items() if qwen2.is_of_llm(name)}


def _fresh(found: dict[str, ParamSpec], filled: set[str]) -> dict[str, list[int] | None]:
    """Leaves that are not filled, and which layers of those that are filled in part."""
    absent: dict[str, list[int] | None] = {}
    partly = {found[name].leaf for name in filled}
    for name, slot in found.items():
        if name in filled:
            continue
        if slot.layer is None or slot.leaf not in partly:
            absent[slot.leaf] = None
        else:
            absent[slot.leaf] = [*(absent.get(slot.leaf) or []), slot.layer]
    return absent


def _copies(name: str, config: MogaoConfig, found: dict[str, ParamSpec]) -> list[str]:
    """Our names that one tensor of the LLM fills: a layer's und branch, and its gen branch."""
    twin = name.replace(".und.", ".gen.")
    copied = config.porting.gen_branch == "copy" and twin != name and twin in found
    return [name, twin] if copied else [name]


def _grown(plan: Plan, source: TensorSource, found: dict[str, ParamSpec]) -> dict[str, int]:
    rows = {pair.name: source.shapes[pair.key][0] for pair in plan.pairs}
    same = ("token_embedding", "lm_head")
    return {n: rows[n] for n in same if n in rows and rows[n] < found[n].shape[0]}
