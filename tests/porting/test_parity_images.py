"""Images as Qwen2-VL's processor and diffusers' make them: sizes, order of patches, values.

Needs transformers (and diffusers for the VAE's side), neither of them with torchvision.
"""

from __future__ import annotations

import random

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from mogao_jax import images
from mogao_jax.models import vit
from mogao_jax.models.vae import decode_latents, encode_images

MAX_PIXELS = 1_003_520  # of the processor's class; released checkpoints have 12,845,056
SIZES = [
    (224, 224), (256, 256), (480, 640), (640, 480), (606, 512), (1080, 1920), (1920, 1080),
    (1, 1), (1, 200), (200, 1), (2, 400), (400, 2), (13, 17), (27, 29), (28, 28), (28, 5600),
    (5600, 28), (42, 70), (55, 57), (56, 56), (57, 55), (99, 1001), (100, 101), (333, 777),
    (20, 20), (30, 6000), (14, 2800), (1000, 1004), (1002, 1002), (70, 14000),
]  # fmt: skip


def relative(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as theirs

    return theirs.Qwen2VLImageProcessorPil()


def of_size(photograph: np.ndarray, height: int, width: int) -> np.ndarray:
    """The photograph, repeated or cut."""
    repeats = -(-height // photograph.shape[0]), -(-width // photograph.shape[1]), 1
    return np.tile(photograph, repeats)[:height, :width]


@pytest.mark.slow
def test_patches_of_thirty_sizes(processor, photograph, measured):
    """Pillow's bicubic on both sides: no difference in resampling is left."""
    assert len(set(SIZES)) == 30
    worst = 0.0
    for height, width in SIZES:
        pixels = of_size(photograph, height, width)
        out = processor(images=[PIL.Image.fromarray(pixels)])
        size = images.vit_size(height, width, "native", MAX_PIXELS)
        patches, positions = images.vit_patches(images.resize(pixels, *size))
        assert out["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]]
        assert positions.max(0).tolist() == [size[0] // 14 - 1, size[1] // 14 - 1]
        ours = np.asarray(vit.normalise(patches)).reshape(len(patches), 3, 1, 196)
        ours = np.broadcast_to(ours, (len(patches), 3, 2, 196)).reshape(len(patches), 1176)
        worst = max(worst, relative(ours, out["pixel_values"]))
    measured("transformers' Qwen2-VL image processor", "30 sizes of a photograph", "patch values",
             worst, 1e-5)  # fmt: skip


@pytest.mark.parametrize("most", [MAX_PIXELS, 12_845_056, 784 * 100])
def test_grids_of_many_sizes(processor, most):
    """Also where rounding meets an exact number: sizes of whole patches, scaled to whole ones."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rng = random.Random(most)
    sizes = [(int(2 ** rng.uniform(0, 13)), int(2 ** rng.uniform(0, 13))) for _ in range(3000)]
    sizes += [(a * k, b * k) for k in (1, 14, 20, 28, 56, 280) for a in range(1, 9)
              for b in range(1, 9)]  # fmt: skip
    compared = 0
    for height, width in sizes:
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(ValueError, match="aspect ratio"):
                smart_resize(height, width, 28, 3136, most)
            continue
        wanted = smart_resize(height, width, 28, 3136, most)
        if wanted[0] * wanted[1] > most:  # thinner than one token: theirs passes its own limit
            continue
        assert images.vit_size(height, width, "native", most) == wanted, (height, width)
        compared += 1
    assert compared > 2000


def test_pixels_for_the_vae_and_back(photograph, measured):
    """diffusers' VaeImageProcessor: [-1, 1] going in; clipped and rounded coming out."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.image_processor import VaeImageProcessor

    theirs = VaeImageProcessor(vae_scale_factor=8)
    pixels = photograph[:480, :320]
    into = theirs.preprocess(PIL.Image.fromarray(pixels)).numpy()
    size = np.asarray([pixels.shape[:2]], np.int32)
    ours = encode_images(_Identity(), {}, pixels[None], size)
    measured("diffusers' VaeImageProcessor", "a photograph", "pixels for the VAE",
             relative(ours[0], into[0].transpose(1, 2, 0)), 1e-6)  # fmt: skip

    values = np.random.default_rng(0).uniform(-1.3, 1.3, (1, 16, 24, 3)).astype(np.float32)
    out = theirs.postprocess(torch.tensor(values.transpose(0, 3, 1, 2)), output_type="pil")
    again = decode_latents(_Identity(), {}, jnp.asarray(values), np.asarray([(16, 24)], np.int32))
    np.testing.assert_array_equal(again[0], np.asarray(out[0]))


def test_sizes_for_the_vae_differ_from_diffusers_by_choice(photograph):
    """diffusers cuts sides to multiples of 8 by Lanczos; ours are multiples of 16 of a budget, by
    the bicubic filter that the ViT's side has. On sizes that are whole already, neither resamples.
    """
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.image_processor import VaeImageProcessor

    theirs = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=16)
    for side in ((480, 320), (16, 512), (256, 256)):
        assert theirs.get_default_height_width(PIL.Image.new("RGB", side[::-1])) == side
        assert images.target_size(*side, 512 * 512, 256, 16, 512) == side
        pixels = of_size(photograph, *side)
        assert images.resize(pixels, *side) is pixels


class _Identity:
    """A VAE that changes nothing: what goes into one is seen, and what comes out given."""

    def apply(self, _, x, *rest, method):
        return x

    def encode_latents(self):
        pass

    def decode_latents(self):
        pass
