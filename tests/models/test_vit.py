"""The vision tower: packed = alone, and equal to transformers' Qwen2-VL tower."""

from __future__ import annotations

import dataclasses
import functools
import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax import images
from mogao_jax.config.schema import VitConfig
from mogao_jax.models import vit
from mogao_jax.models.vit import VisionTower

CONFIG = VitConfig(depth=2, embed_dim=32, num_heads=2, mlp_dim=64)
GRIDS = [(28, 56), (56, 28), (56, 84)]


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


def random_images():
    rng = np.random.default_rng(0)
    return [images.vit_patches(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in GRIDS]


def packed(length: int):
    """All images in one row, with noise in the padding."""
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 256, (1, length, 588), np.uint8)
    positions = rng.integers(0, 9, (1, length, 2)).astype(np.int32)
    segment = np.zeros((1, length), np.int32)
    start = 0
    for i, (p, yx) in enumerate(random_images()):
        where = slice(start, start + len(p))
        patches[0, where], positions[0, where], segment[0, where] = p, yx, i + 1
        start += len(p)
    return patches, positions, segment


def random_params(module, seed=0):
    inputs = jnp.zeros((1, 4, 588), jnp.uint8), jnp.zeros((1, 4, 2), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs, jnp.ones((1, 4), jnp.int32))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return jnp.asarray(noise / math.sqrt(leaf.shape[0]))
        return jnp.asarray(0.2 * noise + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


@functools.cache
def setup(merger_dim=0):
    module = VisionTower(dataclasses.replace(CONFIG, merger_dim=merger_dim))
    params = random_params(module)
    return params, jax.jit(lambda *inputs: module.apply({"params": params}, *inputs))


@pytest.mark.parametrize("merger_dim", [0, 24])
def test_packed_equals_each_image_alone(merger_dim):
    _, apply = setup(merger_dim)
    together = np.asarray(apply(*packed(60)))[0]
    per_token = 4 if merger_dim else 1
    start = 0
    for p, yx in random_images():
        alone = apply(p[None], yx[None], np.ones((1, len(p)), np.int32))[0]
        n = len(p) // per_token
        close(together[start : start + n], alone)
        start += n
    assert together.shape[-1] == (merger_dim or 32) and start < len(together)
    assert not together[start:].any()
    # The comparison can fail: as one image, the row gives something else.
    patches, positions, segment = packed(60)
    mixed = np.asarray(apply(patches, positions, (segment > 0).astype(np.int32)))[0]
    assert np.abs(mixed - together).max() > 1e-2


@pytest.mark.parametrize("merger_dim", [0, 24])
def test_stacked_blocks_in_a_loop_are_the_same_tower(merger_dim):
    params, apply = setup(merger_dim)
    module = VisionTower(dataclasses.replace(CONFIG, merger_dim=merger_dim))
    stack = vit.stacked(params)
    assert "blocks_0" not in stack and set(params) - set(stack) == {"blocks_0", "blocks_1"}
    assert stack["blocks"]["mlp_fc1"]["kernel"].shape == (2, 32, 64)
    back = vit.unstacked(stack)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert vit.unstacked(params) is params
    close(module.apply({"params": stack}, *packed(60)), apply(*packed(60)), 1e-6)
    # Every block counts, in its place.
    turned = {**params, "blocks_0": params["blocks_1"], "blocks_1": params["blocks_0"]}
    other = module.apply({"params": vit.stacked(turned)}, *packed(60))
    assert np.abs(np.asarray(other) - np.asarray(apply(*packed(60)))).max() > 1e-2
    loop = jax.make_jaxpr(lambda p: module.apply({"params": p}, *packed(60)))(stack)
    assert [e.params["length"] for e in loop.eqns if e.primitive.name == "scan"] == [2]


def test_empty_row_is_zero_with_finite_gradients():
    module = VisionTower(CONFIG)
    params, _ = setup()
    patches, positions, segment = packed(60)

    def total(params):
        return (module.apply({"params": params}, patches, positions, 0 * segment) ** 2).sum()

    value, gradients = jax.jit(jax.value_and_grad(total))(params)
    assert value == 0 and all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_rotary_angles_by_hand():
    """head_dim 8: two frequencies per axis, 1 and theta^-1/2; rows first, then columns."""
    angles = vit.rotary_angles(jnp.asarray([[[2, 3]]]), 8, 100.0)
    close(angles[0, 0], [2.0, 0.2, 3.0, 0.3])


def test_normalise_is_per_channel():
    patch = np.zeros((1, 588), np.uint8)
    patch[0, 196:392] = 255
    out = vit.normalise(patch)[0].reshape(3, 196)
    close(out[0], np.full(196, -0.48145466 / 0.26862954))
    close(out[1], np.full(196, (1 - 0.4578275) / 0.26130258))
    close(out[2], np.full(196, -0.40821073 / 0.27577711))


def test_published_size():
    """665M parameters with the merger at Qwen2-VL-2B's width (1536)."""
    shapes = jax.eval_shape(
        VisionTower(VitConfig(merger_dim=1536)).init,
        jax.random.key(0),
        jnp.zeros((1, 4, 588), jnp.uint8),
        jnp.zeros((1, 4, 2), jnp.int32),
        jnp.ones((1, 4), jnp.int32),
    )
    assert 664e6 < sum(x.size for x in jax.tree.leaves(shapes)) < 666e6


def transformers_name(path: str) -> str:
    for ours, theirs in (
        ("attn_", "attn."),
        ("mlp_fc", "mlp.fc"),
        ("merger.mlp_", "merger.mlp."),
        ("blocks_", "blocks."),
        (".kernel", ".weight"),
        (".scale", ".weight"),
    ):
        path = path.replace(ours, theirs)
    return path


def test_equals_transformers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl import modeling_qwen2_vl as theirs_lib
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    c = CONFIG
    theirs = theirs_lib.Qwen2VisionTransformerPretrainedModel._from_config(
        Qwen2VLVisionConfig(
            depth=c.depth,
            embed_dim=c.embed_dim,
            hidden_size=24,
            num_heads=c.num_heads,
            mlp_ratio=c.mlp_dim // c.embed_dim,
        ),
        attn_implementation="eager",
    ).eval()
    params, apply_merged = setup(24)
    state = {}
    for path, value in flax.traverse_util.flatten_dict(params, sep=".").items():
        array = np.array(value)
        if path == "patch_embed.proj.kernel":
            array = array.T.reshape(c.embed_dim, 3, 2, 14, 14)
        elif array.ndim == 2:
            array = array.T
        state[transformers_name(path)] = torch.tensor(np.ascontiguousarray(array))
    theirs.load_state_dict(state, strict=True)
    module = VisionTower(CONFIG)
    tower = {k: v for k, v in params.items() if k != "merger"}

    def vectors(patches):  # what their processor makes: normalised, each frame twice
        mean, std = vit.PIXEL_MEAN[:, None], vit.PIXEL_STD[:, None]
        x = (patches.reshape(len(patches), 3, 196).astype(np.float32) / 255 - mean) / std
        return np.repeat(x[:, :, None], 2, axis=2).reshape(len(patches), -1)

    inputs = np.concatenate([vectors(p) for p, _ in random_images()])
    grid = torch.tensor([(1, h // 14, w // 14) for h, w in GRIDS])
    with torch.no_grad():
        out = theirs(torch.tensor(inputs), grid_thw=grid)
    n = len(inputs)
    ours = jax.jit(lambda *a: module.apply({"params": tower}, *a))(*packed(60))[0, :n]
    close(ours, out.last_hidden_state.numpy())
    close(apply_merged(*packed(60))[0, : n // 4], out.pooler_output.numpy())
