"""Images on the host: decoding, native-resolution sizes, resizing, ViT patches. Numpy, Pillow.

Decoding bounds what it opens: the header's size is read, and judged, before any pixel is. Sizes
are (height, width): of pixels, of the grid of VAE tokens, or of the grid of merged ViT tokens.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pathlib
import stat
import warnings
from typing import Literal, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps

from mogao_jax.atomic import write_file
from mogao_jax.config.geometry import VAE_GRID, VIT_MERGE, VIT_PATCH
from mogao_jax.config.schema import ImageConfig, VitConfig
from mogao_jax.errors import DocumentError

MAX_DECODED_PIXELS = 64 * 2**20  # 192 MiB of RGB
MAX_ENCODED_BYTES = 256 * 2**20
# Pillow can open formats that run other programs (EPS) or that nobody trains on.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_ROWS = 64  # converted at a time
_SHOWN_SIDE = 192  # pixels, of images in a notebook
VIT_MIN_PIXELS = 56 * 56  # Qwen2-VL's image processor, default

Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """An image of a document: a file (`path`), an encoded file in memory (`data`), or pixels.

    Exactly one of the three is set; pixels are uint8[H, W, 3]. `role` and `loss` are those of a
    document's items (sequence/document.py). A notebook shows the image.
    """

    path: pathlib.Path | None = None
    data: bytes | None = None
    pixels: np.ndarray | None = None
    role: Role | None = None
    loss: bool = True

    def to_pil(self) -> PIL.Image.Image:
        """As a Pillow image in RGB; raises DocumentError if it cannot be decoded."""
        return PIL.Image.fromarray(load_pixels(self))

    def save(self, path: str | os.PathLike) -> None:
        """Writes an image file, in the format that its ending names.

        Raises:
          DocumentError: the image cannot be decoded, or no format has that ending.
          EnvironmentProblem: the file cannot be written.
        """
        kind = PIL.Image.registered_extensions().get(pathlib.Path(path).suffix.lower())
        if kind not in FORMATS:
            raise DocumentError(f"{os.fspath(path)!r}: name a file such as image.png or image.jpg.")
        encoded = io.BytesIO()
        self.to_pil().save(encoded, kind)
        write_file(path, encoded.getvalue())

    def __repr__(self) -> str:
        if self.pixels is None:
            shown = f"{len(self.data)} bytes" if self.data is not None else repr(str(self.path))
        else:
            shown = "{}x{} pixels".format(*self.pixels.shape[:2])
        return f"Image({shown}{f', role={self.role!r}' if self.role else ''})"

    def _repr_png_(self) -> bytes:
        image = self.to_pil()
        times = max(1, _SHOWN_SIDE // max(image.size))  # tiny ones enlarged
        encoded = io.BytesIO()
        image.resize(
            (image.width * times, image.height * times), PIL.Image.Resampling.NEAREST
        ).save(encoded, "PNG")
        return encoded.getvalue()


class VitInput(NamedTuple):
    """The ViT's patches of one image, in its merge order."""

    patches: np.ndarray  # uint8[P, 3 * patch^2]
    positions: np.ndarray  # int32[P, 2]
    grid: tuple[int, int]  # of merged tokens


def _name(item: Image) -> str:
    if item.path is not None:
        return f"image {str(item.path)!r}"
    return "image given as bytes" if item.data is not None else "image given as pixels"


def encoded_bytes(item: Image) -> bytes:
    """The image as an encoded file: as it is, or as PNG when it was given as pixels.

    Raises:
      DocumentError: the file is missing, unreadable, no regular file (a pipe, a device) or larger
        than MAX_ENCODED_BYTES.
    """
    if item.pixels is not None:
        buffer = io.BytesIO()
        PIL.Image.fromarray(item.pixels).save(buffer, "PNG")
        return buffer.getvalue()
    if item.data is not None:
        data = item.data
        size = len(data)
    else:
        assert item.path is not None
        try:
            status = item.path.stat()
            if not stat.S_ISREG(status.st_mode):  # a pipe blocks, a device may have no end
                raise DocumentError(
                    f"{_name(item)} cannot be read: it is a folder, a pipe or a device; name an "
                    "image file."
                )
            data, size = b"", status.st_size
            if size <= MAX_ENCODED_BYTES:
                with item.path.open("rb") as file:  # it may have grown since
                    data = file.read(MAX_ENCODED_BYTES + 1)
                size = len(data)
        except FileNotFoundError:
            raise DocumentError(f"{_name(item)} does not exist; check its path.") from None
        except OSError as e:
            raise DocumentError(f"{_name(item)} cannot be read: {e.strerror or e}.") from None
    if size > MAX_ENCODED_BYTES:
        raise DocumentError(
            f"{_name(item)} is a file of {size / 2**20:.0f} MiB; at most "
            f"{MAX_ENCODED_BYTES // 2**20} MiB are read."
        )
    return data


def load_pixels(item: Image) -> np.ndarray:
    """uint8[H, W, 3] of an image item, as a viewer would show it.

    EXIF orientation is applied, transparency composited on white, palettes, grey, 16-bit and
    CMYK turned into RGB, and of an animation the first frame is taken.

    Raises:
      DocumentError: naming the file and the reason (missing, not an image, truncated, too large).
    """
    if item.pixels is not None:
        return item.pixels
    data = encoded_bytes(item)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and odd metadata
            with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height <= MAX_DECODED_PIXELS:
                    return _to_rgb(PIL.ImageOps.exif_transpose(image))
    except PIL.UnidentifiedImageError:
        raise DocumentError(
            f"{_name(item)} is not an image in a known format ({', '.join(FORMATS)}); save it as "
            "one of these."
        ) from None
    except PIL.Image.DecompressionBombError:
        raise DocumentError(f"{_name(item)} is far too large to decode. Make it smaller.") from None
    except DocumentError as e:
        raise DocumentError(f"{_name(item)} {e}") from None
    except Exception as e:  # noqa: BLE001  (decoders raise anything on broken files)
        raise DocumentError(f"{_name(item)} cannot be decoded: {e}. Save it anew.") from None
    raise DocumentError(
        f"{_name(item)} has {width} x {height} pixels; at most "
        f"{MAX_DECODED_PIXELS // 10**6} million are decoded. Make it smaller."
    )


def _to_rgb(image: PIL.Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise DocumentError("has floating-point pixels, whose range is unknown; use 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip at 255
        return _grey16_to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _grey16_to_rgb(grey: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] of integer[H, W] from 0 to 65535; some rows at a time, to spare memory."""
    rgb = np.empty((*grey.shape, 3), np.uint8)
    for start in range(0, len(grey), _ROWS):
        rows = np.clip(grey[start : start + _ROWS].astype(np.int32), 0, 65535)
        rgb[start : start + _ROWS] = ((rows + 128) // 257)[:, :, None]
    return rgb


def target_size(
    height: int,
    width: int,
    max_pixels: int,
    min_pixels: int = 1,
    grid: int = VAE_GRID,
    max_side: int = 1 << 30,
) -> tuple[int, int]:
    """Native resolution: the size (height, width) that an image is resized to.

    The aspect ratio is kept as far as the grid allows; both sides are multiples of `grid`, none
    is over `max_side`, and the area is at most `max_pixels`. An image that is already so, and has
    `min_pixels`, keeps its size. Where the limits disagree, `max_side` and `max_pixels` win over
    `min_pixels`, and all of them over the aspect ratio: an image longer than max_side : grid
    becomes one grid cell thin and is squeezed along its length.
    """
    scale = min(
        max(1.0, math.sqrt(min_pixels / (height * width))), math.sqrt(max_pixels / (height * width))
    )
    scale = min(scale, max_side / max(height, width))
    longest = max_side // grid
    h = min(max(1, round(height * scale / grid)), longest)
    w = min(max(1, round(width * scale / grid)), longest)
    wanted = math.log(height / width)
    while h * w * grid * grid > max_pixels and h * w > 1:
        smaller = [(a, b) for a, b in ((h - 1, w), (h, w - 1)) if a and b]
        h, w = min(smaller, key=lambda size: abs(math.log(size[0] / size[1]) - wanted))
    return h * grid, w * grid


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic (with a wider kernel when shrinking); the same array if it already has the size.

    Args:
      pixels: uint8[H, W, 3].
    Returns:
      uint8[height, width, 3].
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    image = PIL.Image.fromarray(pixels)
    return np.array(image.resize((width, height), PIL.Image.Resampling.BICUBIC))


def vit_size(
    height: int,
    width: int,
    mode: str,
    vit_max_pixels: int,
    *,
    patch_size: int = VIT_PATCH,
    merge_size: int = VIT_MERGE,
    vae_grid: int = VAE_GRID,
    vit_min_pixels: int = VIT_MIN_PIXELS,
) -> tuple[int, int]:
    """The size that an image has before the ViT, in multiples of patch_size * merge_size (28).

    Args:
      height, width: size before the VAE.
      mode: "native": Qwen2-VL's rule (each side rounded to the unit; if that leaves the pixel
        range, both sides scaled into it and rounded inwards). "match_vae_grid": one ViT token for
        each VAE token; `vit_max_pixels` does not apply.
    """
    unit = patch_size * merge_size
    if mode == "match_vae_grid":
        return height // vae_grid * unit, width // vae_grid * unit
    h, w = round(height / unit), round(width / unit)
    if h * w * unit * unit > vit_max_pixels:
        # In this order of operations, as there: a quotient that is whole must not be missed.
        beta = math.sqrt((height * width) / vit_max_pixels)
        h, w = max(1, math.floor(height / beta / unit)), max(1, math.floor(width / beta / unit))
    elif h * w * unit * unit < vit_min_pixels:
        beta = math.sqrt(vit_min_pixels / (height * width))
        h, w = math.ceil(height * beta / unit), math.ceil(width * beta / unit)
    # The rule alone can pass the maximum for images over 1 : 200, which Qwen2-VL refuses.
    while h * w * unit * unit > vit_max_pixels and h * w > 1:
        h, w = (h - 1, w) if h > w else (h, w - 1)
    return h * unit, w * unit


def vit_patches(
    pixels: np.ndarray, patch_size: int = VIT_PATCH, merge_size: int = VIT_MERGE
) -> tuple[np.ndarray, np.ndarray]:
    """Patches in Qwen2-VL's order: merge blocks by row, and the patches of each block by row.

    On a 4 x 4 grid that is 0,1,4,5, 2,3,6,7, 8,9,12,13, 10,11,14,15; so the ViT token of patch p
    is p // merge_size**2, and ViT tokens are in row order.

    Args:
      pixels: uint8[H, W, 3], sides multiples of patch_size * merge_size.
    Returns:
      patches uint8[P, 3 * patch_size**2] (channel, y, x flattened), positions int32[P, 2] (h, w).
    """
    p, m = patch_size, merge_size
    rows, columns = pixels.shape[0] // (p * m), pixels.shape[1] // (p * m)
    blocks = pixels.reshape(rows, m, p, columns, m, p, 3)
    patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * p * p)
    yx = np.indices((rows * m, columns * m), dtype=np.int32)  # [2, h, w]
    yx = yx.reshape(2, rows, m, columns, m).transpose(1, 3, 2, 4, 0)
    return patches, np.ascontiguousarray(yx.reshape(-1, 2))


def native_pixels(item: Image, images: ImageConfig) -> np.ndarray:
    """uint8[H, W, 3] at native resolution: the size that the VAE sees (multiples of 16).

    Raises:
      DocumentError: the image cannot be read.
    """
    pixels = load_pixels(item)
    height, width = pixels.shape[:2]
    height, width = target_size(
        height,
        width,
        max_pixels=images.max_pixels,
        min_pixels=images.min_pixels,
        grid=VAE_GRID,
        max_side=images.max_side,
    )
    return resize(pixels, height, width)


def vae_grid(pixels: np.ndarray) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return height // VAE_GRID, width // VAE_GRID


def vit_input(pixels: np.ndarray, images: ImageConfig, vit: VitConfig) -> VitInput:
    """What the ViT sees of an image uint8[H, W, 3] of native resolution."""
    height, width = pixels.shape[:2]
    height, width = vit_size(
        height, width, mode=images.vit_resize, vit_max_pixels=images.vit_max_pixels
    )
    patches, positions = vit_patches(
        resize(pixels, height, width),
        patch_size=vit.patch_size,
        merge_size=vit.merge_size,
    )
    block = vit.patch_size * vit.merge_size
    return VitInput(patches, positions, (height // block, width // block))
