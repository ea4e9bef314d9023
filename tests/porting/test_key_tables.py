"""Key tables: every key accounted for, and transforms that lose nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny_files as files

from mogao_jax import key_tables
from mogao_jax.config.schema import MogaoConfig, VaeConfig
from mogao_jax.errors import CheckpointError
from mogao_jax.key_tables import Rule, compress, invert, match
from mogao_jax.models.encoder_weights import vae_template, vit_template
from mogao_jax.models.modules import make_model, param_shapes
from mogao_jax.porting.formats import autoencoders, qwen2, qwen2_vl_vision
from mogao_jax.porting.params import param_specs, shapes_of

TABLE = (
    Rule("embed.weight", "embedding"),
    Rule("blocks.{i}.w.weight", "layers.{i}.w.kernel", key_tables.LINEAR),
    Rule("blocks.{i}.cache", None),
)
OURS = {"embedding": (5, 2), "layers.0.w.kernel": (2, 3), "layers.1.w.kernel": (2, 3)}
THEIRS = {"embed.weight": (5, 2), "blocks.0.w.weight": (3, 2), "blocks.1.w.weight": (3, 2)}


def problems(table=TABLE, theirs=THEIRS, ours=OURS, **options) -> str:
    with pytest.raises(CheckpointError) as error:
        match(table, theirs, ours, place="'file'", **options)
    assert "'file'" in str(error.value)
    return str(error.value)


def test_what_fits_is_paired():
    plan = match(TABLE, THEIRS | {"blocks.0.cache": (7,)}, OURS, place="file")
    assert {(p.key, p.name) for p in plan.pairs} == {
        ("embed.weight", "embedding"),
        ("blocks.0.w.weight", "layers.0.w.kernel"),
        ("blocks.1.w.weight", "layers.1.w.kernel"),
    }
    assert plan.left == ["blocks.0.cache"] and plan.missing == []


def test_every_kind_of_problem_is_in_one_message():
    theirs = {
        "embed.weight": (4, 2),  # wrong shape
        "blocks.0.w.weight": (3, 2),
        "blocks.2.w.weight": (3, 2),  # no such layer; and layer 1 is missing
        "blocks.03.w.weight": (3, 2),  # no layer number
        "stranger": (1,),
    }
    message = problems(theirs=theirs)
    for part in (
        "embed.weight has shape [4, 2], the config wants [5, 2]",
        "blocks.2.w.weight is not expected",
        "blocks.03.w.weight is not expected",
        "stranger is not expected",
        "blocks.1.w.weight is missing",
        "5 problem(s)",
    ):
        assert part in message, message


def test_all_layers_are_listed_in_short():
    ours = {f"layers.{i}.w.kernel": (2, 3) for i in range(12)} | {"embedding": (5, 2)}
    theirs = {"embed.weight": (5, 2), "blocks.4.w.weight": (3, 2)}
    assert "blocks.{0-3,5-11}.w.weight is missing, " not in problems(ours=ours, theirs=theirs)
    assert "blocks.{0-3,5-11}.w.weight is missing" in problems(ours=ours, theirs=theirs)


def test_keys_matched_twice():
    twice = (*TABLE, Rule("blocks.{i}.w.weight", "layers.{i}.v.kernel"))
    message = problems(table=twice)
    assert "blocks.0.w.weight is matched twice" in message
    assert "blocks.1.w.weight is matched twice" in message
    both = (*TABLE, Rule("wte", "embedding"))
    message = problems(table=both, theirs=THEIRS | {"wte": (5, 2)})
    assert "parameter embedding is matched twice, by embed.weight and wte" in message


def test_missing_keys_may_be_allowed_by_name():
    theirs = {key: shape for key, shape in THEIRS.items() if "1" not in key}
    plan = match(TABLE, theirs, OURS, place="file", allow_missing=["blocks.1.*"])
    assert plan.missing == ["layers.1.w.kernel"]
    message = problems(allow_missing=["blocks.1.*"])  # which is there
    assert "nothing is missing that --allow-missing 'blocks.1.*' names" in message
    message = problems(theirs=theirs, allow_missing=["embed*"])
    assert "blocks.1.w.weight is missing" in message and "'embed*'" in message


def test_a_longer_table_only_where_it_is_allowed():
    theirs = THEIRS | {"embed.weight": (4, 2)}
    assert match(TABLE, theirs, OURS, place="file", longer=["embedding"]).pairs
    assert "has shape [6, 2]" in problems(
        theirs=THEIRS | {"embed.weight": (6, 2)}, longer=["embedding"]
    )
    assert "has shape [4, 1]" in problems(
        theirs=THEIRS | {"embed.weight": (4, 1)}, longer=["embedding"]
    )


def test_compress():
    assert compress(["a.0.b", "a.1.b", "a.3.b", "c", "d.7.e"]) == ["a.{0-1,3}.b", "c", "d.7.e"]
    assert compress(["x.1", "y.2.3.z"]) == ["x.1", "y.2.3.z"]


@pytest.mark.parametrize(
    ("transform", "ours"),
    [
        (key_tables.SAME, (4, 3)),
        (key_tables.LINEAR, (4, 3)),
        (key_tables.INTO_HEADS, (6, 2, 4)),
        (key_tables.HEADS_BIAS, (2, 4)),
        (key_tables.OUT_OF_HEADS, (2, 4, 6)),
        (key_tables.CONV, (3, 3, 4, 5)),
        (key_tables.POINTWISE, (4, 5)),
        (key_tables.patch_embedding(2, 4), (96, 5)),
    ],
    ids=lambda x: getattr(x, "their_axes", None),
)
def test_transforms_have_inverses(transform, ours):
    x = np.random.default_rng(0).normal(size=ours)
    theirs = transform.backward(x)
    assert theirs.shape == transform.theirs(ours)
    np.testing.assert_array_equal(transform.forward(theirs, ours), x)


def test_what_the_transforms_mean():
    """Against the layers' equations, in plain einsums."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 6))
    weight = rng.normal(size=(8, 6))  # [N * H, D] as PyTorch has it
    heads = key_tables.INTO_HEADS.forward(weight, (6, 2, 4))
    np.testing.assert_allclose(np.einsum("ld,dnh->lnh", x, heads).reshape(7, 8), x @ weight.T)
    out = rng.normal(size=(6, 8))
    joined = key_tables.OUT_OF_HEADS.forward(out, (2, 4, 6))
    y = rng.normal(size=(7, 2, 4))
    np.testing.assert_allclose(np.einsum("lnh,nhd->ld", y, joined), y.reshape(7, 8) @ out.T)
    patch = rng.normal(size=(5, 3, 2, 4, 4))
    pixels = rng.normal(size=(9, 3, 2, 4, 4))
    flat = key_tables.patch_embedding(2, 4).forward(patch, (96, 5))
    np.testing.assert_allclose(
        pixels.reshape(9, -1) @ flat, np.einsum("pcthw,dcthw->pd", pixels, patch)
    )


def own_shapes(template) -> dict:
    return shapes_of(param_specs(template))


LLM = MogaoConfig(model=dataclasses.replace(files.MODEL, tie_embeddings=False))
TAEF1 = VaeConfig(kind="taef1")


@pytest.mark.parametrize(
    ("table", "shapes", "ours"),
    [
        (qwen2.table(LLM.model), files.qwen2_shapes(LLM.model), lambda: llm_shapes()),
        (
            qwen2_vl_vision.table(files.VIT),
            files.vision_shapes(),
            lambda: own_shapes(vit_template(files.VIT)),
        ),
        *(
            (
                autoencoders.table(files.VAE, layout),
                files.vae_shapes(layout),
                lambda: own_shapes(vae_template(files.VAE)),
            )
            for layout in autoencoders.LAYOUTS["flux"]
        ),
        *(
            (autoencoders.table(TAEF1, layout), None, lambda: own_shapes(vae_template(TAEF1)))
            for layout in autoencoders.LAYOUTS["taef1"]
        ),
    ],
    ids=["qwen2", "vit", "bfl", "diffusers", "taef1", "taef1-diffusers"],
)
def test_tables_cover_their_formats_and_lead_back(table, shapes, ours):
    wanted = ours()
    if shapes is None:
        shapes = {rule.theirs: rule.transform.theirs(wanted[rule.ours]) for rule in table}
    plan = match(table, shapes, wanted, place="file")
    assert {pair.name for pair in plan.pairs} == wanted.keys()
    assert {pair.key for pair in plan.pairs} | set(plan.left) == shapes.keys()
    assert all(key.startswith("merger.") for key in plan.left)
    assert sorted(invert(table, wanted)) == sorted(plan.pairs)


def llm_shapes() -> dict:
    found = own_shapes(param_shapes(LLM, make_model(LLM, files.VOCAB)))
    return {name: shape for name, shape in found.items() if qwen2.is_of_llm(name)}


def test_a_name_that_the_format_has_no_place_for():
    with pytest.raises(CheckpointError, match=r"no place for latent_in.kernel"):
        invert(qwen2.table(files.MODEL), ["token_embedding", "latent_in.kernel"])
