"""Is the scorer itself right? True images must pass, images that are wrong by one thing fail.

Both as rendered and as a model's images come: through the tiny autoencoder, soft, noisy, and off in
colour. Documents are held out, requests are the documents' own.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mogao_jax.evals.proportion import Proportion
from mogao_jax.sequence.document import Image, Item, Text
from mogao_jax.worlds.shapes.evals.benchmark import GROUPS
from mogao_jax.worlds.shapes.evals.cases import Case, cases
from mogao_jax.worlds.shapes.evals.judging import judge
from mogao_jax.worlds.shapes.evals.scorers.templates import blurred
from mogao_jax.worlds.shapes.evals.scorers.violations import wrong_changes, wrong_images
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.rng import Rng
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Scene, World
from mogao_jax.worlds.shapes.world import ShapesSource

Distort = Callable[[Sequence[np.ndarray], Rng], list[np.ndarray]]

BLUR, NOISE, TINT = 0.8, 10.0, 12.0  # pixels; RGB values: deviation; largest, per channel


@dataclasses.dataclass(frozen=True)
class Trial:
    """A generation that is right or wrong for a case; `name` says what is wrong with it."""

    case: Case
    name: str
    items: tuple[Text | Scene, ...]

    @property
    def right(self) -> bool:
        return self.name == "true"


@dataclasses.dataclass(frozen=True)
class Validation:
    """Of trials under one distortion: right ones judged right, wrong ones judged wrong.

    Attributes:
      task, distortion: which.
      accepted: right ones judged right.
      refused: wrong ones judged wrong.
      by_violation: the same by what was wrong.
    """

    task: str
    distortion: str
    accepted: Proportion
    refused: Proportion
    by_violation: dict[str, Proportion]


def trials(
    task: str, per_category: int, seed: int = 0, world: World = DEFAULT_WORLD
) -> list[Trial]:
    """All trials of a task (t2i, edit, story)."""
    made = []
    rng = np.random.default_rng((seed, 4))
    for case in cases(task, GROUPS[task], per_category, seed=seed, world=world):
        for name, items in _MAKERS[task](rng, case, world).items():
            made.append(Trial(case, name, items))
    return made


_Items = tuple[Text | Scene, ...]


def _t2i_items(rng: Rng, case: Case, world: World) -> dict[str, _Items]:
    scene, request = case.truth.scenes[0], case.truth.request
    assert request is not None
    wrong = wrong_images(rng, request, scene, world)
    return {name: (s,) for name, s in {"true": scene, **wrong}.items()}


def _edit_items(rng: Rng, case: Case, world: World) -> dict[str, _Items]:
    before, after = case.truth.scenes
    wrong = wrong_changes(rng, before, case.truth.edits[0], after, world)
    return {name: (s,) for name, s in {"true": after, **wrong}.items()}


def _story_items(rng: Rng, case: Case, world: World) -> dict[str, _Items]:
    """Images missing, repeated, swapped, and one that misses its change."""
    seed = int(case.prompt.id.split("/")[3])  # shapes/task/split/seed/index
    document = ShapesSource("story", seed, "validation", world=world)[case.index]
    texts = [i for i in document.items[1:] if isinstance(i, Text)]
    scenes = list(case.truth.scenes)

    def told(shown: Sequence[Scene]) -> _Items:
        items: list[Text | Scene] = []
        for text, scene in zip(texts, shown, strict=False):
            items += [text, scene]
        return (*items, texts[-1])

    k = int(rng.integers(1, len(scenes)))
    wrong = wrong_changes(rng, scenes[k - 1], case.truth.edits[k - 1], scenes[k], world)
    name = sorted(wrong)[int(rng.integers(len(wrong)))]
    return {
        "true": told(scenes),
        "image missing": told(scenes[:-1]),
        "image repeated": told([*scenes[:k], scenes[k - 1], *scenes[k + 1 :]]),
        "images swapped": told([*scenes[: k - 1], scenes[k], scenes[k - 1], *scenes[k + 1 :]]),
        "step wrong": told([*scenes[:k], wrong[name], *scenes[k + 1 :]]),
        "sentence missing": told(scenes)[1:],
    }


_MAKERS = {"t2i": _t2i_items, "edit": _edit_items, "story": _story_items}


# --------------------------------------------------------------------------------- distortions


def as_rendered(images: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
    return list(images)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def soft(images: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
    return [_bytes(blurred(p, BLUR)) for p in images]


def noisy(images: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
    return [_bytes(p + rng.normal(0, NOISE, p.shape)) for p in images]


def tinted(images: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
    return [_bytes(p + rng.uniform(-TINT, TINT, 3)) for p in images]


def through_vae(batch_size: int = 16) -> Distort:
    """Reconstruction by the embedded tiny autoencoder; compiled for one canvas."""
    import jax

    from mogao_jax.models.encoder_weights import load_vae, saved_vae_config
    from mogao_jax.models.vae import decode_latents, encode_images
    from mogao_jax.worlds.shapes.tiny_encoders.images import on_canvas

    vae, params = load_vae(saved_vae_config())
    run = jax.jit(lambda x, s: decode_latents(vae, params, encode_images(vae, params, x, s), s))

    def distort(images: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
        height, width = np.max([p.shape[:2] for p in images], axis=0)
        out: list[np.ndarray] = []
        for start in range(0, len(images), batch_size):
            part = list(images[start : start + batch_size])
            empty = [np.zeros((0, 0, 3), np.uint8)] * (batch_size - len(part))
            made = np.asarray(run(*on_canvas(part + empty, (height, width))))
            out += [made[i, : p.shape[0], : p.shape[1]] for i, p in enumerate(part)]
        return out

    return distort


def everything(vae: Distort) -> Distort:
    """The autoencoder, then all three, half as strong."""

    def distort(images: Sequence[np.ndarray], rng: Rng) -> list[np.ndarray]:
        out = []
        for p in vae(images, rng):
            tint = rng.uniform(-TINT / 2, TINT / 2, 3)
            out.append(_bytes(blurred(p, 0.6) + tint + rng.normal(0, NOISE / 2, p.shape)))
        return out

    return distort


def distortions() -> dict[str, Distort]:
    """All of them by name."""
    vae = through_vae()
    return {
        "rendered": as_rendered,
        "autoencoder": vae,
        "soft": soft,
        "noisy": noisy,
        "tinted": tinted,
        "all together": everything(vae),
    }


# ---------------------------------------------------------------------------------- validating


def validate(
    task: str, made: Sequence[Trial], name: str, distort: Distort, world: World = DEFAULT_WORLD
) -> Validation:
    """Judges trials whose images went through a distortion."""
    rng = np.random.default_rng(9)
    scenes = [item for trial in made for item in trial.items if isinstance(item, Scene)]
    images = iter(distort([render(s) for s in scenes], rng))
    # Of true trials judged right, of each violation judged wrong.
    found: dict[str, Proportion] = collections.defaultdict(Proportion)
    for trial in made:
        items: list[Item] = [
            item if isinstance(item, Text) else Image(pixels=next(images)) for item in trial.items
        ]
        found[trial.name] += judge(trial.case, items, "end", world).right == trial.right
    accepted = found.pop("true", Proportion())
    return Validation(task, name, accepted, sum(found.values(), Proportion()), dict(found))
