"""Decoding of odd files, native sizes, ViT sizes and patch order."""

import io
import math
import os
import pathlib
import struct
import tracemalloc
import types
import zlib

import numpy as np
import PIL.Image
import pytest

from mogao_jax import images
from mogao_jax.errors import DocumentError
from mogao_jax.sequence.document import Image


def encode(image: PIL.Image.Image, file_format="PNG", **kw) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **kw)
    return buffer.getvalue()


def load(image: PIL.Image.Image, file_format="PNG", **kw) -> np.ndarray:
    pixels = images.load_pixels(Image(data=encode(image, file_format, **kw)))
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return pixels


RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_plain_and_round_trip():
    np.testing.assert_array_equal(load(PIL.Image.fromarray(RGB)), RGB)
    again = images.encoded_bytes(Image(pixels=RGB))
    np.testing.assert_array_equal(images.load_pixels(Image(data=again)), RGB)
    assert images.load_pixels(Image(pixels=RGB)) is RGB
    assert images.encoded_bytes(Image(data=b"xyz")) == b"xyz"


def test_alpha_is_composited_on_white():
    rgba = np.concatenate([RGB, RGB[..., :1]], axis=2)
    a = rgba[..., 3:] / 255
    want = np.rint(rgba[..., :3] * a + 255 * (1 - a))
    got = load(PIL.Image.fromarray(rgba)).astype(int)
    assert np.abs(got - want).max() <= 1
    grey = np.ascontiguousarray(rgba[..., 2:])  # LA
    want = np.rint(grey[..., :1] * a + 255 * (1 - a))
    assert np.abs(load(PIL.Image.fromarray(grey, "LA")).astype(int) - want).max() <= 1


def test_palette_with_transparency():
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    assert load(image).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert load(image, transparency=1).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_grey_16_bit_cmyk_one_bit():
    grey = RGB[..., 0]
    np.testing.assert_array_equal(load(PIL.Image.fromarray(grey)), np.stack([grey] * 3, 2))
    wide = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(load(PIL.Image.fromarray(wide)), np.stack([grey] * 3, 2))
    cmyk = PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red ink
    red = load(cmyk, "JPEG", quality=100)[4, 4].astype(int)
    assert red[0] > 240 and red[1] < 20 and red[2] < 20
    bits = PIL.Image.fromarray(grey > 127)
    np.testing.assert_array_equal(load(bits)[..., 1], (grey > 127) * np.uint8(255))


def test_16_bits_need_little_memory():
    pixels = np.arange(1000 * 1000, dtype=np.uint32).astype(np.uint16).reshape(1000, 1000)
    image = Image(data=encode(PIL.Image.fromarray(pixels)))
    tracemalloc.start()
    try:
        rgb = images.load_pixels(image)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    expected = (pixels.astype(np.int64) + 128) // 257
    np.testing.assert_array_equal(rgb, np.repeat(expected[..., None], 3, 2))
    assert peak < 12 * pixels.size  # bytes: 3 are returned, 2 and 4 are Pillow's and ours


def test_exif_orientation_and_first_frame():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    np.testing.assert_array_equal(load(PIL.Image.fromarray(RGB), exif=exif), np.rot90(RGB, -1))
    first, second = (PIL.Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255)))
    got = load(first, "GIF", save_all=True, append_images=[second])
    assert got.shape == (4, 4, 3) and (got == [255, 0, 0]).all()


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def test_broken_images_name_the_file_and_the_reason(tmp_path):
    def refused(data: bytes | None, match: str):
        path = tmp_path / "some.png"
        path.unlink(missing_ok=True)
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(DocumentError, match=r"image '.*some\.png' " + match):
            images.load_pixels(Image(path=path))

    whole = encode(PIL.Image.fromarray(np.tile(RGB, (20, 20, 1))))
    refused(None, "does not exist")
    refused(b"", "is not an image")
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "is not an image")
    refused(whole[: len(whole) // 2], "cannot be decoded")
    refused(bomb(9000, 9000), "has 9000 x 9000 pixels")
    refused(bomb(60000, 60000), "is far too large")
    refused(encode(PIL.Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "has floating")
    os.mkfifo(tmp_path / "pipe.png")
    for place in (tmp_path, tmp_path / "pipe.png", pathlib.Path("/dev/zero")):
        with pytest.raises(DocumentError, match="cannot be read: it is a folder, a pipe or a dev"):
            images.load_pixels(Image(path=place))
    with pytest.raises(DocumentError, match="image given as bytes is not an image"):
        images.load_pixels(Image(data=b"GIF"))


def test_files_that_grow_while_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / "some.png"
    path.write_bytes(bytes(5000))
    monkeypatch.setattr(images, "MAX_ENCODED_BYTES", 1000)
    with pytest.raises(DocumentError, match="is a file of"):
        images.load_pixels(Image(path=path))
    status = types.SimpleNamespace(st_mode=path.stat().st_mode, st_size=10)
    monkeypatch.setattr(pathlib.Path, "stat", lambda self: status)
    with pytest.raises(DocumentError, match="is a file of"):
        images.load_pixels(Image(path=path))


def test_target_size_by_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(300):
        h, w = (int(x) for x in np.exp(rng.uniform(0, 8, 2)) + 1)
        grid, max_side = int(rng.choice([16, 32])), int(rng.choice([64, 256, 512]))
        max_pixels = int(rng.choice([1024, 65536, 100_000]))
        got = images.target_size(h, w, max_pixels, 256, grid, max_side)
        assert all(side % grid == 0 and grid <= side <= max_side for side in got)
        assert got[0] * got[1] <= max_pixels
        assert images.target_size(*got, max_pixels, 256, grid, max_side) == got
        assert images.target_size(w, h, max_pixels, 256, grid, max_side) == got[::-1]
        if 1 / 3 < h / w < 3 and h * w > 4 * max_pixels and max_side**2 > 3 * max_pixels:
            # A larger size of the same aspect, one cell more on both sides, would not fit.
            assert (got[0] + grid) * (got[1] + grid) > max_pixels
            assert abs(math.log(got[0] / got[1]) - math.log(h / w)) < 1.5 * grid / min(got)


@pytest.mark.parametrize(
    "size, want",
    [
        ((256, 256), (256, 256)),  # identity
        ((64, 96), (64, 96)),
        ((512, 512), (256, 256)),
        ((512, 1024), (176, 368)),  # 181 x 362, rounded
        ((60, 70), (64, 64)),  # not enlarged to the budget
        ((3, 5), (16, 16)),  # enlarged to 256 pixels: 12 x 20
        ((1, 10_000), (16, 512)),  # squeezed
        ((10_000, 1), (512, 16)),
    ],
)
def test_target_size_values(size, want):
    assert images.target_size(*size, 256 * 256, 256, 16, 512) == want


def test_resize():
    flat = np.full((10, 20, 3), 77, np.uint8)
    assert images.resize(flat, 10, 20) is flat
    out = images.resize(flat, 16, 32)
    assert out.shape == (16, 32, 3) and (out == 77).all()
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)
    half = images.resize(ramp, 4, 32)[2, 4:-4, 0].astype(float)
    np.testing.assert_allclose(half, np.arange(32)[4:-4] * 2 + 0.5, atol=1)


@pytest.mark.parametrize(
    "size, limit, want",
    [
        ((280, 56), 10**6, (280, 56)),
        ((256, 256), 10**6, (252, 252)),  # 9.14 -> 9
        ((42, 70), 10**6, (56, 56)),  # 1.5 and 2.5 round to even, as Python's round does
        ((64, 64), 10**6, (56, 56)),
        ((16, 16), 10**6, (56, 56)),  # under 56 * 56: enlarged
        ((16, 512), 10**6, (28, 504)),  # 0.57 -> 1, 18.29 -> 18; in range
        ((8, 512), 10**6, (28, 448)),  # 0.29 -> 0: enlarged by sqrt(3136 / 4096), rounded up
        ((1000, 2000), 1003520, (700, 1400)),  # shrunk by 1.4117: 25.3, 50.6, rounded down
    ],
)
def test_vit_size_native(size, limit, want):
    """Worked by hand from the rule of Qwen2-VL's image processor."""
    assert images.vit_size(*size, "native", limit) == want


def test_vit_size_other():
    assert images.vit_size(64, 96, "match_vae_grid", 1) == (112, 168)
    h, w = images.vit_size(16, 16 * 4000, "native", 784 * 10)
    assert h * w <= 7840 and h == 28


def test_vit_patches_order_and_content():
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (56, 84, 3), dtype=np.uint8)
    patches, positions = images.vit_patches(pixels)
    assert patches.shape == (4 * 6, 588) and patches.dtype == np.uint8
    assert positions.shape == (24, 2) and positions.dtype == np.int32
    for patch, (y, x) in zip(patches, positions, strict=True):
        want = pixels[y * 14 : y * 14 + 14, x * 14 : x * 14 + 14].transpose(2, 0, 1)
        np.testing.assert_array_equal(patch, want.ravel())
    _, square = images.vit_patches(np.zeros((56, 56, 3), np.uint8))
    order = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert (square[:, 0] * 4 + square[:, 1]).tolist() == order
