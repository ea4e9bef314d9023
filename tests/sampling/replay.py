"""What the sampler predicted, and the same predictions from one training forward, uncached."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tiny_system as tiny

from mogao_jax.models.modules import EncoderParams
from mogao_jax.models.mogao import MogaoInputs, example_inputs, head_table
from mogao_jax.models.vae import FluxVae, encode_images, patchify_latents
from mogao_jax.models.vit import VisionTower
from mogao_jax.ops.attention.parts import Parts
from mogao_jax.sampling.sampler import Sampler
from mogao_jax.sequence.batch import CONTEXTS, Sizes
from mogao_jax.sequence.layout import image_uid
from mogao_jax.sequence.masking import TEXT
from mogao_jax.sequence.packing import pack_row, stack_rows

BUDGETS = Sizes(und=160, clean=48, noised=48, images=8, vit_patches=192)
CELLS = tiny.SIDE // 16  # of the canvas, per side
LETTERS = [ord(c) for c in "abcd"]


def random_params(init, seed: int):
    """Parameters of the shapes that `init` returns, random everywhere, scaled by their fan-in.

    EncodedImage by numpy: nothing is compiled.
    """
    rng = np.random.default_rng(seed)
    shapes = nn.unbox(jax.eval_shape(init))["params"]

    def draw(shape) -> np.ndarray:
        scale = 0.5 if len(shape.shape) < 2 else np.prod(shape.shape[:-1]) ** -0.5
        return rng.normal(size=shape.shape).astype(np.float32) * np.float32(scale)

    return jax.tree.map(draw, shapes)


@functools.cache
def encoders() -> EncoderParams:
    cfg, side = tiny.CONFIG, tiny.SIDE
    pixels, size = jnp.zeros((1, side, side, 3)), jnp.full((1, 2), side)
    patches = (np.zeros((1, 4, 588), np.uint8), np.zeros((1, 4, 2), np.int32), np.ones((1, 4)))
    key = jax.random.key(0)
    return EncoderParams(
        random_params(lambda: FluxVae(cfg.vae).init(key, pixels, size), 1),
        random_params(lambda: VisionTower(cfg.vit).init(key, *patches), 2),
    )


@functools.cache
def tiny_model(**changes) -> tuple:
    """(modules, parameters) of a variant of the tiny config: `section__field=value`."""
    sections: dict[str, dict] = {}
    for name, value in changes.items():
        section, field = name.split("__")
        sections.setdefault(section, {})[field] = value
    modules = tiny.load_modules(tiny.config(**sections))
    inputs = example_inputs(modules.model, (1, 8, 4, 4, 1))
    return modules, random_params(lambda: modules.model.init(jax.random.key(0), inputs), 3)


def make_sampler(modules, params, **kwargs) -> Sampler:
    """A sampler that writes only the letters a to d and <|vision_start|>: text that reads back."""
    kwargs = {"max_length": 160, "text_chunk": 5, "step_chunk": 3} | kwargs
    sampler = Sampler(modules, params, encoders(), tiny.TOKENIZER, **kwargs)
    sampler.allowed[:] = False
    sampler.allowed[[*LETTERS, tiny.TOKENIZER.vision_start]] = True
    return sampler


class Recorder:
    """Predictions of one request served alone; rows of the cache are then its contexts.

    Attributes:
      logits: {T id of the token that was read: logits}.
      velocities: one per evaluation: x, t, and the velocity under each context.
      latents: of the images that were drawn.
    """

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.logits: dict[int, np.ndarray] = {}
        self.velocities: list[dict] = []
        self.latents: list[np.ndarray] = []

    def __call__(self, what: str, seen: dict) -> None:
        seen = {k: np.array(v) for k, v in seen.items()}
        if what == "logits":
            if seen["active"][0]:
                self.logits[int(seen["t"][0])] = seen["logits"][0]
            return
        lines = [i for i, row in enumerate(seen["row"]) if row < len(CONTEXTS)]
        self.velocities.append(
            {"x": seen["x"][lines[0]], "t": seen["t"][lines[0]]}
            | {int(seen["row"][i]): seen["velocity"][i] for i in lines}
        )

    def watch(self, sampler: Sampler) -> Sampler:
        """Also keeps the latents of the images that the sampler draws."""
        encoders = sampler.engine.encoders
        decode = encoders.decode

        def decode_and_keep(latents, sizes):
            self.latents += latents
            return decode(latents, sizes)

        encoders.decode = decode_and_keep
        return sampler


class Replay:
    """A finished document laid out as in training, in one guidance context, without a cache."""

    def __init__(self, modules, params, document, context: int):
        cfg = modules.config
        self._modules, self._params, self._document = modules, params, document
        laid = tiny.lay(document, cfg, context=context, require_loss=False)
        self.row = stack_rows([pack_row([laid], BUDGETS, cfg.images.max_side)])
        uids = list(self.row.images.uid[0])
        num_images = sum(hasattr(item, "pixels") for item in document.items)
        # Image of the document -> line of the image table, where it stands in it.
        found = {i: image_uid(document.id, i) for i in range(num_images)}
        self.lines = {i: uids.index(uid) for i, uid in found.items() if uid in uids}

    def forward(self, latents: dict[int, np.ndarray], x: dict[int, np.ndarray], t: dict):
        """Logits of all und tokens float32[U, V], and {image: velocity float32[n, 64]}.

        Args:
          latents: clean tokens of the images that are known by them; others are encoded.
          x, t: noised tokens and timestep of each image that was drawn.
        """
        row = jax.tree.map(jnp.asarray, self.row)
        encoded = np.asarray(_encode(row.images.pixels, row.images.size))
        clean, noised = (encoded[0].copy() for _ in range(2))  # [I, CELLS^2, 64]
        times = np.zeros((1, clean.shape[0]), np.float32)
        for image, line in self.lines.items():
            size = self.row.images.size[0, line]
            if image in latents:
                clean[line] = _on_canvas(latents[image], size)
            if image in x:
                noised[line] = _on_canvas(x[image], size)
                times[0, line] = t[image]
        modules = self._modules
        features = np.zeros((1, 4, 16), np.float32) if modules.vit is None else _see(row.vit)
        inputs = MogaoInputs(
            tokens=row.und.tokens,
            vit_index=row.und.vit_index,
            vit_features=features,
            clean_latents=_take(clean, row.clean),
            noised_latents=_take(noised, row.noised),
            timesteps=times,
            noised_index=row.noised.image,
            meta=Parts(*(p.meta for p in (row.und, row.clean, row.noised))),
            positions=Parts(*(p.positions for p in (row.und, row.clean, row.noised))),
        )
        out = _apply(modules)(self._params, inputs)
        logits = np.asarray(out.und_hidden[0]) @ np.asarray(head_table(self._params)).T
        image_of = np.asarray(row.noised.image[0])
        velocity = np.asarray(out.velocity[0])
        return logits, {i: velocity[image_of == line] for i, line in self.lines.items()}

    def text_index(self, t: int) -> int:
        """Where the text token with T id t stands in the und stream of the full form."""
        und = self.row.und
        at = (und.meta.segment[0] == 1) & (und.meta.kind[0] == TEXT)
        (index,) = np.nonzero(at & (und.positions[0, :, 0] == t))[0]
        return int(index)


@functools.cache
def _apply(modules):
    return jax.jit(lambda params, inputs: modules.model.apply({"params": params}, inputs))


@jax.jit
def _see(vit):
    return VisionTower(tiny.CONFIG.vit).apply({"params": encoders().vit}, *vit[:3])


@jax.jit
def _encode(pixels, size):
    latents = encode_images(FluxVae(tiny.CONFIG.vae), encoders().vae, pixels, size)
    return patchify_latents(latents)


def _on_canvas(tokens: np.ndarray, size: np.ndarray) -> np.ndarray:
    """An image's tokens [n, 64] at their addresses on the canvas [CELLS^2, 64]."""
    h, w = size // 16
    canvas = np.zeros((CELLS, CELLS, tokens.shape[-1]), np.float32)
    canvas[:h, :w] = tokens.reshape(h, w, -1)
    return canvas.reshape(CELLS * CELLS, -1)


def _take(canvases: np.ndarray, stream) -> np.ndarray:
    image, patch = np.asarray(stream.image), np.asarray(stream.patch)
    taken = canvases[np.maximum(image, 0), patch]
    return np.where(image[..., None] >= 0, taken, 0).astype(np.float32)
