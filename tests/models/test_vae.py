"""The FLUX VAE: exact per image on mixed canvases, and equal to diffusers' AutoencoderKL."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mogao_jax.config.schema import VaeConfig
from mogao_jax.models import vae as vae_lib
from mogao_jax.models.masked_layers import segment_attention
from mogao_jax.models.vae import FluxVae

CONFIG = VaeConfig(
    block_channels=(8, 8, 16, 16),
    layers_per_block=1,
    norm_groups=4,
    scaling_factor=0.7,
    shift_factor=0.2,
)
CANVAS = 32, 48
SIZES = np.asarray([(16, 32), (0, 0), (32, 24)], np.int32)


def random_params(module, *inputs, seed=0):
    """Parameters all of which matter: no zero biases, no unit scales."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "kernel":
            return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])))
        return jnp.asarray(0.2 * noise + (path[-1].key == "scale"))

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def setup():
    module = FluxVae(CONFIG)
    params = random_params(module, jnp.zeros((1, 16, 16, 3)), jnp.full((1, 2), 16, jnp.int32))
    rng = np.random.default_rng(1)
    # What lies outside the images is noise, not zeros: none of it may matter.
    pixels = rng.uniform(-1, 1, (len(SIZES), *CANVAS, 3)).astype(np.float32)
    z = rng.normal(size=(len(SIZES), CANVAS[0] // 8, CANVAS[1] // 8, 16)).astype(np.float32)
    return module, params, jnp.asarray(pixels), jnp.asarray(z)


def close(a, b, tolerance=1e-5):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


def weighed(module, method):
    """A scalar of the output that weighs every value differently, and its gradient's function."""

    def function(params, x, size, weights):
        out = module.apply({"params": params}, x, size, method=method)
        out = jnp.concatenate(jax.tree.leaves(out), -1)
        return (out * weights).sum(), out

    return jax.jit(jax.value_and_grad(function, argnums=1, has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize("method, channels", [("encode", 32), ("decode", 3)])
def test_mixed_sizes_equal_each_image_alone(method, channels):
    module, params, pixels, z = setup()
    x = pixels if method == "encode" else z
    into, outof = (1, 8) if method == "encode" else (8, 1)
    run = weighed(module, method)
    out_shape = (len(SIZES), CANVAS[0] // outof, CANVAS[1] // outof, channels)
    weights = np.random.default_rng(2).normal(size=out_shape).astype(np.float32)
    (_, together), gradient = run(params, x, SIZES, weights)
    assert np.isfinite(gradient).all()
    for i, (h, w) in enumerate(SIZES):
        ih, iw = h // into, w // into
        oh, ow = (h // 8, w // 8) if method == "encode" else (h, w)
        assert not np.asarray(together[i, oh:]).any() and not np.asarray(together[i, :, ow:]).any()
        assert not np.asarray(gradient[i, ih:]).any() and not np.asarray(gradient[i, :, iw:]).any()
        if h == 0:
            continue
        (_, alone), alone_gradient = run(
            params, x[i : i + 1, :ih, :iw], SIZES[i : i + 1], weights[i : i + 1, :oh, :ow]
        )
        close(together[i, :oh, :ow], alone[0])
        close(gradient[i, :ih, :iw], alone_gradient[0])


def test_without_masks_the_neighbourhood_would_leak():
    """The same comparison with a mask of the whole canvas fails by far: the test can fail."""
    module, params, pixels, _ = setup()
    apply = jax.jit(lambda x, size: module.apply({"params": params}, x, size, method="encode").mean)
    h, w = SIZES[0]
    alone = apply(pixels[:1, :h, :w], SIZES[:1])[0]
    whole_canvas = np.asarray([CANVAS], np.int32)
    zeroed = jnp.zeros_like(pixels[:1]).at[:, :h, :w].set(pixels[:1, :h, :w])
    unmasked = apply(zeroed, whole_canvas)[0, : h // 8, : w // 8]
    assert np.abs(unmasked - alone).max() > 1e-2 * np.abs(alone).max()


def test_no_image_has_finite_parameter_gradients():
    module, params, pixels, _ = setup()
    size = jnp.zeros((1, 2), jnp.int32)

    @jax.jit
    @jax.grad
    def gradient(params):
        return (module.apply({"params": params}, pixels[:1], size) ** 2).sum()

    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient(params)))


def test_scaling_round_trip_and_direction():
    z = jnp.asarray([0.2, 1.2])
    scaled = vae_lib.scale_latents(z, CONFIG)
    close(scaled, [0.0, 0.7], 1e-6)
    close(vae_lib.unscale_latents(scaled, CONFIG), z, 1e-6)


def test_encode_images_is_scaled_sampled_and_batched():
    module, params, pixels, _ = setup()
    pixels = jnp.concatenate([pixels, pixels[:1]])
    sizes = np.concatenate([SIZES, SIZES[:1]])
    images = jnp.round((pixels + 1) * 127.5).astype(jnp.uint8).reshape(2, 2, *CANVAS, 3)
    size = sizes.reshape(2, 2, 2)
    noise = jax.random.normal(jax.random.key(3), (2, 2, CANVAS[0] // 8, CANVAS[1] // 8, 16))
    got = jax.jit(functools.partial(vae_lib.encode_images, module))(params, images, size, noise)
    assert got.shape == noise.shape and got.dtype == jnp.float32
    x = images.reshape(4, *CANVAS, 3).astype(jnp.float32) / 127.5 - 1
    encode = jax.jit(lambda x, size: module.apply({"params": params}, x, size, method="encode"))
    mean, logvar = encode(x, sizes)
    wanted = np.asarray((mean + np.exp(logvar / 2) * noise.reshape(mean.shape) - 0.2) * 0.7)
    for i, (h, w) in enumerate(sizes):
        flat = np.asarray(got.reshape(mean.shape)[i])
        assert not flat[h // 8 :].any() and not flat[:, w // 8 :].any()
        if h:
            close(flat[: h // 8, : w // 8], wanted[i, : h // 8, : w // 8])
    decode = jax.jit(functools.partial(vae_lib.decode_latents, module))
    decoded = np.asarray(decode(params, got, size))
    assert decoded.shape == images.shape and decoded.dtype == np.uint8
    assert decoded[0, 0, :16, :32].any() and not decoded[0, 1].any()  # (0, 0): no image


def test_patchify_order_and_inverse():
    latents = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    tokens = vae_lib.patchify_latents(latents)
    assert tokens.shape == (2, 6, 12)
    # Token 4 is at row 1, column 1 of the 2 x 3 grid.
    np.testing.assert_array_equal(tokens[0, 4], latents[0, 2:4, 2:4].reshape(-1))
    np.testing.assert_array_equal(vae_lib.unpatchify_latents(tokens, 4, 6), latents)


def test_segment_attention_in_blocks_equals_a_loop():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 11, 2, 4)).astype(np.float32)
    # Contiguous with padding at the end; in no order at all, with padding between.
    segment = np.asarray([[1, 1, 1, 2, 2, 2, 2, 3, 0, 0, 0], [5, 5, 0, 2, 5, 5, 2, 2, 5, 9, 5]])
    wanted = np.zeros_like(q)
    for b in range(2):
        for t in range(11):
            if segment[b, t]:
                keys = np.flatnonzero(segment[b] == segment[b, t])
                for n in range(2):
                    e = np.exp(k[b, keys, n] @ q[b, t, n] / 2)
                    wanted[b, t, n] = (e / e.sum()) @ v[b, keys, n]

    def dense(q, k, v):
        same = (segment[:, :, None] == segment[:, None, :]) & (segment[:, None, :] > 0)
        logits = jnp.where(same[:, None], jnp.einsum("btkd,bskd->bkts", q, k) / 2, -1e30)
        out = jnp.einsum("bkts,bskd->btkd", jax.nn.softmax(logits), v)
        return jnp.where(segment[:, :, None, None] > 0, out, 0)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *x: (attend(*x) ** 2).sum(), (0, 1, 2)))(q, k, v)

    for chunk in (2, 4, None):
        attend = functools.partial(segment_attention, segment=jnp.asarray(segment), chunk=chunk)
        close(jax.jit(attend)(q, k, v), wanted)
        for ours, theirs in zip(gradients(attend), gradients(dense), strict=True):
            close(ours, theirs)


def test_flux_size():
    """83.8M parameters at FLUX's widths (its published size)."""
    shapes = jax.eval_shape(
        FluxVae(VaeConfig()).init,
        jax.random.key(0),
        jnp.zeros((1, 16, 16, 3)),
        jnp.full((1, 2), 16, jnp.int32),
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 83_819_683


def diffusers_name(path: str) -> str:
    """Our dotted path -> the key in diffusers' AutoencoderKL."""
    for block in ("down_blocks", "up_blocks"):
        for part in ("resnets", "downsamplers", "upsamplers"):
            for level in range(4):
                for i in range(4):
                    inner = ".conv" if part.endswith("samplers") else ""
                    path = path.replace(
                        f"{block}_{level}_{part}_{i}.", f"{block}.{level}.{part}.{i}{inner}."
                    )
    for part in ("resnets_0", "resnets_1", "attentions_0"):
        path = path.replace(f"mid_block.{part}", f"mid_block.{part.replace('_', '.')}")
    path = path.replace("to_out.", "to_out.0.")
    return path.replace(".kernel", ".weight").replace(".scale", ".weight")


def test_equals_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    import flax.traverse_util

    config = dataclasses.replace(CONFIG, block_channels=(8, 16, 16, 24), layers_per_block=2)
    module = FluxVae(config)
    params = random_params(module, jnp.zeros((1, 16, 16, 3)), jnp.full((1, 2), 16, jnp.int32))
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.block_channels,
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    state = {}
    for path, value in flax.traverse_util.flatten_dict(params, sep=".").items():
        array = np.array(value)
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2:
            array = array.T
        state[diffusers_name(path)] = torch.tensor(np.ascontiguousarray(array))
    theirs.load_state_dict(state, strict=True)
    rng = np.random.default_rng(3)
    for h, w in ((16, 40), (32, 24)):
        x = rng.uniform(-1, 1, (1, h, w, 3)).astype(np.float32)
        z = rng.normal(size=(1, h // 8, w // 8, 16)).astype(np.float32)
        size = np.asarray([(h, w)], np.int32)
        # On a larger canvas: the masks are part of what is compared.
        canvas = np.zeros((1, 32, 48, 3), np.float32)
        canvas[:, :h, :w] = x
        z_canvas = np.zeros((1, 4, 6, 16), np.float32)
        z_canvas[:, : h // 8, : w // 8] = z
        posterior = module.apply({"params": params}, canvas, size, method="encode")
        pixels = module.apply({"params": params}, z_canvas, size, method="decode")
        with torch.no_grad():
            moments = theirs.encoder(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
            decoded = theirs.decode(torch.tensor(z.transpose(0, 3, 1, 2))).sample.numpy()
        ours = np.concatenate(posterior, -1)[:, : h // 8, : w // 8]
        close(ours, moments.transpose(0, 2, 3, 1))
        close(pixels[:, :h, :w], decoded.transpose(0, 2, 3, 1))
