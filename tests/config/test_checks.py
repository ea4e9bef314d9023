"""Conditions between fields: each contradiction is refused, naming the fields to change."""

from __future__ import annotations

import pytest

from mogao_jax.config import check, default_config, from_config_dict, source
from mogao_jax.config.checks import image_tokens, vit_tokens
from mogao_jax.errors import ConfigError


def _config(changes=None, **task_by_source):
    config = default_config()
    for name, task in (task_by_source or {"pictures": "story"}).items():
        config.data.sources[name] = source(kind="shapes", task=task)
    config.packing.clean_tokens = 256
    for path, value in (changes or {}).items():
        node = config
        *groups, last = path.split(".")
        for group in groups:
            node = node[group]
        node[last] = value
    return from_config_dict(config)


def test_a_sound_config_passes():
    check(_config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.sources": {}}, ["data.sources is empty"]),
        ({"data.sources.pictures.weight": 0.0}, ["every weight is 0"]),
        ({"data.sources.pictures.options.task": "draw"}, ["options.task", "'draw'", "t2i"]),
        ({"data.sources.pictures.kind": "documents"}, ["pictures.path=PATH"]),
        ({"tokenizer.kind": "file"}, ["tokenizer.path"]),
        ({"tokenizer.kind": "file", "tokenizer.path": "/no/such"}, ["/no/such"]),
        ({"images.max_side": 250}, ["240 or 256"]),
        ({"images.min_pixels": 100_000}, ["images.min_pixels", "max_pixels"]),
        ({"packing.noised_tokens": 255}, ["packing.noised_tokens (255)", "256", "65280"]),
        ({"packing.clean_tokens": 255}, ["packing.clean_tokens (255)"]),
        ({"packing.vit_patches": 323}, ["packing.vit_patches (323)", "least 324", "81 ViT"]),
        ({"packing.und_tokens": 80}, ["packing.und_tokens (80)", "least 81"]),
        ({"model.timestep_embed_dim": 33}, ["timestep_embed_dim", "even"]),
        ({"model.connector": "vit_merger"}, ["vit.merger_dim"]),
        ({"vit.merger_dim": 64}, ["model.connector", "vit_merger"]),
        ({"vae.block_channels": (32, 64)}, ["vae.block_channels", "4"]),
        ({"vae.block_channels": (32, 64, 64, 65)}, ["65", "norm_groups"]),
        ({"vit.num_heads": 7}, ["vit.embed_dim", "vit.num_heads"]),
        ({"optimizer.b2": 1.0}, ["optimizer.b2"]),
        (
            {"optimizer.b2": 0.999, "optimizer.moments_dtype": "bfloat16"},
            ["optimizer.b2 is 0.999", "0.99", "moments_dtype='float32'"],
        ),
        ({"optimizer.end_learning_rate": 1.0}, ["end_learning_rate"]),
        ({"optimizer.warmup_steps": 5000}, ["warmup_steps (5000)", "num_steps"]),
        ({"mesh.fsdp": -1}, ["only one axis"]),
        ({"mesh.tensor": 0}, ["mesh.tensor is 0"]),
        (
            {"mesh.param_axes": ("fsdp", "data"), "mesh.num_slices": 2},
            ["mesh.param_axes", "network between slices", "mesh.param_axes=fsdp"],
        ),
        ({"mesh.data": 3}, ["train.global_batch_rows (4)", "(3)"]),
    ],
)
def test_contradictions(changes, words):
    with pytest.raises(ConfigError) as error:
        check(_config(changes))
    for word in words:
        assert word in str(error.value)


def test_budgets_are_asked_of_the_streams_in_use_alone():
    small = {"packing.noised_tokens": 16, "packing.clean_tokens": 16}
    check(_config(small, talk="text", questions="qa"))
    check(_config({"packing.clean_tokens": 16}, pictures="t2i"))
    with pytest.raises(ConfigError, match="noised_tokens"):
        check(_config(small, pictures="t2i"))
    reads_vae = {**small, "layout.understanding_encoder": "vae"}
    with pytest.raises(ConfigError, match="clean_tokens"):
        check(_config(reads_vae, questions="qa"))


def test_image_tokens_are_bounded_by_budget_and_canvas():
    assert image_tokens(_config()) == 256
    assert image_tokens(_config({"images.max_side": 64})) == 16


@pytest.mark.parametrize("mode", ["native", "match_vae_grid"])
@pytest.mark.parametrize("side", [16, 64, 160, 512])
def test_vit_tokens_are_those_of_the_layout(mode, side):
    from mogao_jax import images

    config = _config({"images.max_pixels": side * side, "images.vit_resize": mode})
    size = images.vit_size(side, side, mode, config.images.vit_max_pixels)
    # Below its minimum size the ViT enlarges, which a check for large images need not know.
    if side >= 56 or mode == "match_vae_grid":
        assert vit_tokens(config) == size[0] * size[1] // 28**2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mesh.tensor": 3}, ["num_heads (4)", "mesh.tensor (3)", "mesh.tensor=2"]),
        ({"mesh.context": 3}, ["und_tokens (1024)", "mesh.context", "use 1023 or 1026"]),
        ({"mesh.context": 8, "packing.clean_tokens": 257}, ["clean_tokens (257)", "256 or 264"]),
    ],
)
def test_what_a_mesh_does_not_divide(changes, words):
    with pytest.raises(ConfigError) as caught:
        check(_config(changes))
    for word in words:
        assert word in str(caught.value)
    check(_config({"mesh.tensor": 4, "mesh.context": 8}))
