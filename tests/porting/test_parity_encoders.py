"""The frozen encoders, loaded through the key tables, against transformers' and diffusers' own.

Needs torch with transformers (the vision tower) and diffusers (the autoencoders). Full sizes
(665M and 83.8M parameters): MOGAO_FULL_SIZE=1, 8 GB of memory.
"""

from __future__ import annotations

import functools
import os

import jax
import jax.numpy as jnp
import llm_reference as reference
import numpy as np
import pytest

from mogao_jax import images
from mogao_jax.config.schema import VaeConfig, VitConfig
from mogao_jax.models import vit as vit_lib
from mogao_jax.models.taef1 import FILES, Taef1
from mogao_jax.models.vae import FluxVae, decode_latents, encode_images
from mogao_jax.models.vit import VisionTower
from mogao_jax.porting.from_hf import load_autoencoder, load_vision_tower
from mogao_jax.porting.tensor_sources import InMemory

full_size = pytest.mark.skipif(
    not os.environ.get("MOGAO_FULL_SIZE"), reason="full size: MOGAO_FULL_SIZE=1"
)
relative = reference.relative


def randomise(theirs, seed: int = 0):
    """Nothing zero, nothing one; spreads that keep activations of one size."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for p in theirs.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 0
            p.copy_(torch.randn_like(p) * (fan_in**-0.5 if fan_in else 0.2))
            if p.ndim == 1:
                p.add_(1.0 if p.mean() > 0 else 0.0)
    return theirs.eval()


def state_of(theirs) -> dict[str, np.ndarray]:
    return {k: np.asarray(v.detach().numpy()) for k, v in theirs.state_dict().items()}


# ------------------------------------------------------------------------------ Qwen2-VL's tower

TOWER = "transformers' Qwen2-VL vision tower"
RESOLUTIONS = [(56, 84), (28, 28), (140, 56), (84, 112)]


def _tower(config: VitConfig, hidden: int):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl import modeling_qwen2_vl as lib
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    return lib.Qwen2VisionTransformerPretrainedModel._from_config(
        Qwen2VLVisionConfig(
            depth=config.depth, embed_dim=config.embed_dim, hidden_size=hidden,
            num_heads=config.num_heads, mlp_ratio=config.mlp_dim // config.embed_dim,
        ),
        attn_implementation="eager",
    )  # fmt: skip


def _packed(photograph):
    """Pieces of the photograph in one row, with padding behind them; and their patch vectors."""
    made = [images.vit_patches(photograph[100 : 100 + h, 50 : 50 + w]) for h, w in RESOLUTIONS]
    num = sum(len(p) for p, _ in made)
    patches = np.full((1, num + 12, 588), 77, np.uint8)
    positions = np.zeros((1, num + 12, 2), np.int32)
    segment = np.zeros((1, num + 12), np.int32)
    patches[0, :num] = np.concatenate([p for p, _ in made])
    positions[0, :num] = np.concatenate([yx for _, yx in made])
    segment[0, :num] = np.repeat(np.arange(len(made)) + 1, [len(p) for p, _ in made])
    x = np.asarray(vit_lib.normalise(patches[0, :num])).reshape(num, 3, 1, 196)
    vectors = np.broadcast_to(x, (num, 3, 2, 196)).reshape(num, 1176)
    return (patches, positions, segment), np.ascontiguousarray(vectors)


def _compare_tower(config: VitConfig, hidden: int, size: str, photograph, measured):
    import torch

    theirs = _tower(config, hidden)
    theirs = randomise(theirs) if config.depth < 10 else theirs.eval()
    packed, vectors = _packed(photograph)
    grid = torch.tensor([(1, h // 14, w // 14) for h, w in RESOLUTIONS])
    with torch.no_grad():
        out = theirs(torch.tensor(vectors), grid_thw=grid)
    wanted = out.last_hidden_state.numpy(), out.pooler_output.numpy()
    source = InMemory({f"visual.{k}": v for k, v in state_of(theirs).items()})
    num = len(vectors)
    for merger_dim, hidden_state in ((0, wanted[0]), (hidden, wanted[1])):
        c = VitConfig(depth=config.depth, embed_dim=config.embed_dim, num_heads=config.num_heads,
                      mlp_dim=config.mlp_dim, merger_dim=merger_dim)  # fmt: skip
        params = load_vision_tower(source, c)
        what = "merged tokens" if merger_dim else "features"
        n = num // 4 if merger_dim else num
        for dtype in (jnp.float32, jnp.bfloat16):
            if dtype == jnp.bfloat16 and merger_dim:
                continue
            apply = jax.jit(functools.partial(VisionTower(c, dtype).apply, {"params": params}))
            error = relative(apply(*packed)[0, :n], hidden_state)
            if dtype == jnp.float32:
                measured(TOWER, size, what, error, 1e-5)
            else:
                rough = error
    with torch.no_grad():
        theirs = theirs.to(torch.bfloat16)
        out = theirs(torch.tensor(vectors).to(torch.bfloat16), grid_thw=grid)
    own = relative(out.last_hidden_state.float().numpy(), wanted[0])
    measured(TOWER, f"{size}, bfloat16", "features, the reference's own", own)
    measured(TOWER, f"{size}, bfloat16", "features, ours", rough, 2 * own)


def test_vision_tower(photograph, measured):
    pytest.importorskip("torch")
    config = VitConfig(depth=3, embed_dim=64, num_heads=4, mlp_dim=256)
    _compare_tower(config, 48, "tiny, 4 resolutions in one row", photograph, measured)


@pytest.mark.slow
@full_size
def test_vision_tower_of_full_size(photograph, measured):
    pytest.importorskip("torch")
    _compare_tower(VitConfig(), 1536, "665M, 4 resolutions in one row", photograph, measured)


# -------------------------------------------------------------------------------- FLUX's VAE

KL = "diffusers' AutoencoderKL"
SIZES = [(32, 48), (48, 16), (24, 40)]
CANVAS = (48, 48)


def _autoencoder(config: VaeConfig):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=config.block_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=config.scaling_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def black_forest_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """diffusers' weights as `ae.safetensors` has them (FLUX's own autoencoder module)."""
    renamed = {}
    for key, value in state.items():
        half, *path = key.split(".")
        name = ".".join(path)
        for i in range(4):
            level = i if half == "encoder" else 3 - i
            blocks, new = ("down_blocks", "down") if half == "encoder" else ("up_blocks", "up")
            name = name.replace(f"{blocks}.{i}.resnets.", f"{new}.<{level}>.block.")
            name = name.replace(f"{blocks}.{i}.downsamplers.0.", f"{new}.<{level}>.downsample.")
            name = name.replace(f"{blocks}.{i}.upsamplers.0.", f"{new}.<{level}>.upsample.")
        name = name.replace("<", "").replace(">", "")
        for i in (0, 1):
            name = name.replace(f"mid_block.resnets.{i}.", f"mid.block_{i + 1}.")
        name = name.replace("mid_block.attentions.0.", "mid.attn_1.")
        if "attn_1" in name:
            for old, new in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
                             ("group_norm", "norm")):  # fmt: skip
                name = name.replace(f"attn_1.{old}.", f"attn_1.{new}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        renamed[f"{half}.{name}"] = value
    return renamed


def test_the_other_layouts_names_are_those_that_diffusers_reads():
    """What this file calls Black Forest Labs' layout, read by diffusers' own converter."""
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = VaeConfig(block_channels=(4, 8, 8, 12), norm_groups=2)
    theirs = randomise(_autoencoder(config))
    import torch

    renamed = {k: torch.tensor(v) for k, v in black_forest_names(state_of(theirs)).items()}
    back = convert_ldm_vae_checkpoint(renamed, theirs.config)
    state = theirs.state_dict()
    assert set(back) == set(state)
    assert all(torch.equal(back[k].reshape(v.shape), v) for k, v in state.items())


def _mixed(channels: int, stride: int, rng, photograph=None):
    """Arrays of all sizes on one canvas, with noise around them that must not matter."""
    side = CANVAS[0] // stride, CANVAS[1] // stride
    canvas = rng.normal(size=(len(SIZES), *side, channels)).astype(np.float32)
    alone = []
    for i, (h, w) in enumerate(SIZES):
        h, w = h // stride, w // stride
        if photograph is not None:
            piece = photograph[200 + 50 * i : 200 + 50 * i + h, 100 : 100 + w]
            canvas[i, :h, :w] = piece / np.float32(127.5) - 1
        alone.append(canvas[i : i + 1, :h, :w].transpose(0, 3, 1, 2).copy())
    return canvas, alone


def _theirs_of(theirs, pixels, latents, dtype=None):
    """Moments and decoded images of each image alone."""
    import torch

    def run(f, x):
        return f(torch.tensor(x).to(dtype or torch.float32)).float().numpy()

    with torch.no_grad():
        moments = [run(lambda x: theirs.encode(x).latent_dist.parameters, x) for x in pixels]
        decoded = [run(lambda z: theirs.decode(z).sample, z) for z in latents]
    return moments, decoded


def _ours_of(config, params, pixels, latents, dtype=jnp.float32):
    module = FluxVae(config, dtype)
    sizes = np.asarray(SIZES, np.int32)

    @jax.jit
    def run(params, pixels, latents):
        posterior = module.apply({"params": params}, pixels, sizes, method="encode")
        decoded = module.apply({"params": params}, latents, sizes, method="decode")
        return jnp.concatenate(posterior, -1), decoded

    moments, decoded = run(params, pixels, latents)
    return (
        [m[None, : h // 8, : w // 8].transpose(0, 3, 1, 2)
         for m, (h, w) in zip(moments, SIZES, strict=True)],
        [p[None, :h, :w].transpose(0, 3, 1, 2) for p, (h, w) in zip(decoded, SIZES, strict=True)],
    )  # fmt: skip


def _joined(arrays):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in arrays])


def _compare_autoencoder(config: VaeConfig, size: str, photograph, measured, *, default=False):
    import torch

    theirs = _autoencoder(config) if default else randomise(_autoencoder(config))
    state = state_of(theirs)
    rng = np.random.default_rng(0)
    pixels, pixels_alone = _mixed(3, 1, rng, photograph)
    latents, latents_alone = _mixed(16, 8, rng)
    wanted = _theirs_of(theirs, pixels_alone, latents_alone)
    layouts = {"diffusers": state, "Black Forest Labs": black_forest_names(state)}
    loaded = {name: load_autoencoder(InMemory(x), config) for name, x in layouts.items()}
    jax.tree.map(np.testing.assert_array_equal, *loaded.values())  # of both, the same parameters
    params = loaded["diffusers"]
    ours = _ours_of(config, params, pixels, latents)
    for what, a, b in zip(("moments", "images"), ours, wanted, strict=True):
        measured(KL, size, f"{what}, both layouts", relative(_joined(a), _joined(b)), 1e-5)
    rough = _ours_of(config, params, pixels, latents, jnp.bfloat16)
    own = _theirs_of(theirs.to(torch.bfloat16), pixels_alone, latents_alone, torch.bfloat16)
    for what, a, b, c in zip(("moments", "images"), rough, own, wanted, strict=True):
        reference_error = relative(_joined(b), _joined(c))
        measured(KL, f"{size}, bfloat16", f"{what}, the reference's own", reference_error)
        error = relative(_joined(a), _joined(c))
        measured(KL, f"{size}, bfloat16", f"{what}, ours", error, 2 * reference_error)


@pytest.mark.slow
def test_autoencoder(photograph, measured):
    pytest.importorskip("torch")
    config = VaeConfig(block_channels=(16, 32, 32, 48), norm_groups=8)
    _compare_autoencoder(config, "tiny, 3 sizes on one canvas", photograph, measured)


@pytest.mark.slow
@full_size
def test_autoencoder_of_full_size(photograph, measured):
    pytest.importorskip("torch")
    _compare_autoencoder(
        VaeConfig(), "83.8M, 3 sizes on one canvas", photograph, measured, default=True
    )


# ------------------------------------------------------------------------------------- TAEF1

TINY = "diffusers' AutoencoderTiny, TAEF1's weights"


@pytest.mark.slow
def test_taef1(shared_dir, photograph, measured):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    from safetensors.torch import load_file

    folder = shared_dir / "weights" / "taef1"
    theirs = diffusers.AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(64,) * 4,
        decoder_block_out_channels=(64,) * 4, num_encoder_blocks=(1, 3, 3, 3),
        num_decoder_blocks=(3, 3, 3, 1), scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip
    state = {}
    for half, file in FILES.items():
        for key, value in load_file(folder / file).items():
            index, rest = key.split(".", 1)
            state[f"{half}.layers.{int(index) - (half == 'decoder')}.{rest}"] = value.float()
    theirs.load_state_dict(state, strict=True)

    config = VaeConfig(kind="taef1", weights=str(folder))
    params = load_autoencoder(folder, config)
    again = load_autoencoder(InMemory(state_of(theirs)), config)  # diffusers' layout
    jax.tree.map(np.testing.assert_array_equal, params, again)

    pixels = photograph[300:556, 128:384]  # 256 x 256; the whole photograph: 28.0 dB
    x = pixels[None] / np.float32(127.5) - 1
    size = np.asarray([(256, 256)], np.int32)
    x_torch = torch.tensor(x.transpose(0, 3, 1, 2))

    def run(dtype):
        model = theirs.to(dtype)
        with torch.no_grad():
            z = model.encoder(x_torch.to(dtype))
            return z.float().numpy(), model.decoder(z).float().numpy()

    wanted = run(torch.float32)
    own = run(torch.bfloat16)
    for dtype in (jnp.float32, jnp.bfloat16):
        module = Taef1(config, dtype)
        apply = jax.jit(module.apply, static_argnames="method")
        z = apply({"params": params}, x, size, method="encode")
        y = apply({"params": params}, z, size, method="decode")
        for what, a, b, c in zip(("latents", "images"), (z, y), wanted, own, strict=True):
            error = relative(np.asarray(a).transpose(0, 3, 1, 2), b)
            if dtype == jnp.float32:
                measured(TINY, "256x256 of a photograph", what, error, 1e-5)
                continue
            reference_error = relative(c, b)
            name = "256x256 of a photograph, bfloat16"
            measured(TINY, name, f"{what}, the reference's own", reference_error)
            measured(TINY, name, f"{what}, ours", error, 2 * reference_error)
    module = Taef1(config)
    latents = encode_images(module, params, pixels[None], size)
    back = np.asarray(decode_latents(module, params, latents, size))[0]
    mse = ((back.astype(np.float64) - pixels) ** 2).mean()
    psnr = 10 * np.log10(255**2 / mse)
    measured(TINY, "256x256 of a photograph", "PSNR in dB (27 to 31 on photographs)", psnr)
    assert psnr > 27
