"""Is the scorer itself right? True pictures must pass, pictures that are wrong by one thing fail.

Both as rendered and as a model's pictures come: through the tiny autoencoder, soft, noisy, and off
in colour. Documents are held out, requests are the documents' own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from mogao_jax.evals.proportion import Proportion
from mogao_jax.sequence.document import Image, Item, Text
from mogao_jax.worlds.shapes.evals.cases import Case, cases
from mogao_jax.worlds.shapes.evals.judging import judge
from mogao_jax.worlds.shapes.evals.scorers.templates import blurred
from mogao_jax.worlds.shapes.evals.scorers.violations import wrong_changes, wrong_pictures
from mogao_jax.worlds.shapes.render import render
from mogao_jax.worlds.shapes.scene import DEFAULT_WORLD, Scene, World
from mogao_jax.worlds.shapes.truth import CATEGORIES, EDITS
from mogao_jax.worlds.shapes.world import ShapesSource

Distort = Callable[[Sequence[np.ndarray], np.random.Generator], list[np.ndarray]]

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


def trials(task: str, per_category: int, seed: int = 0, world: World = DEFAULT_WORLD):
    """All trials of a task (t2i, edit, story): a list of Trial."""
    make = {"t2i": _t2i_trials, "edit": _edit_trials, "story": _story_trials}[task]
    categories = {"t2i": CATEGORIES, "edit": EDITS, "story": ("planned", "free")}[task]
    rng = np.random.default_rng((seed, 4))
    out: list[Trial] = []
    for case in cases(task, categories, per_category, seed=seed, world=world):
        out += make(rng, case, world)
    return out


def _t2i_trials(rng: np.random.Generator, case: Case, world: World) -> list[Trial]:
    scene, request = case.truth.scenes[0], case.truth.request
    assert request is not None
    wrong = wrong_pictures(rng, request, scene, world)
    return [Trial(case, name, (s,)) for name, s in {"true": scene, **wrong}.items()]


def _edit_trials(rng: np.random.Generator, case: Case, world: World) -> list[Trial]:
    before, after = case.truth.scenes
    wrong = wrong_changes(rng, before, case.truth.edits[0], after, world)
    return [Trial(case, name, (s,)) for name, s in {"true": after, **wrong}.items()]


def _story_trials(rng: np.random.Generator, case: Case, world: World) -> list[Trial]:
    """Pictures missing, repeated, swapped, and one that misses its change."""
    document = ShapesSource("story", _seed(case), "validation", world=world)[case.index]
    texts = [i for i in document.items[1:] if isinstance(i, Text)]
    scenes = list(case.truth.scenes)

    def told(pictures: Sequence[Scene]) -> tuple[Text | Scene, ...]:
        items: list[Text | Scene] = []
        for text, scene in zip(texts, pictures, strict=False):
            items += [text, scene]
        return (*items, texts[-1])

    k = int(rng.integers(1, len(scenes)))
    wrong = wrong_changes(rng, scenes[k - 1], case.truth.edits[k - 1], scenes[k], world)
    name = sorted(wrong)[int(rng.integers(len(wrong)))]
    made = {
        "true": told(scenes),
        "picture missing": told(scenes[:-1]),
        "picture repeated": told([*scenes[:k], scenes[k - 1], *scenes[k + 1 :]]),
        "pictures swapped": told([*scenes[: k - 1], scenes[k], scenes[k - 1], *scenes[k + 1 :]]),
        "step wrong": told([*scenes[:k], wrong[name], *scenes[k + 1 :]]),
        "sentence missing": told(scenes)[1:],
    }
    return [Trial(case, name, items) for name, items in made.items()]


def _seed(case: Case) -> int:
    return int(case.prompt.id.split("/")[3])  # shapes/task/split/seed/index


# ---------------------------------------------------------------------------------- distortions


def as_rendered(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return list(pictures)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def soft(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [_bytes(blurred(p, BLUR)) for p in pictures]


def noisy(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [_bytes(p + rng.normal(0, NOISE, p.shape)) for p in pictures]


def tinted(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    return [_bytes(p + rng.uniform(-TINT, TINT, 3)) for p in pictures]


def through_vae(batch_size: int = 16) -> Distort:
    """Reconstruction by the embedded tiny autoencoder; compiled for one canvas."""
    import jax

    from mogao_jax.models.encoder_weights import load_vae, tiny_vae_config
    from mogao_jax.models.vae import decode_latents, encode_images

    vae, params = load_vae(tiny_vae_config())
    run = jax.jit(lambda x, s: decode_latents(vae, params, encode_images(vae, params, x, s), s))

    def distort(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        height, width = np.max([p.shape[:2] for p in pictures], axis=0)
        out: list[np.ndarray] = []
        for start in range(0, len(pictures), batch_size):
            part = pictures[start : start + batch_size]
            canvas = np.zeros((batch_size, height, width, 3), np.uint8)
            sizes = np.zeros((batch_size, 2), np.int32)
            for i, p in enumerate(part):
                canvas[i, : p.shape[0], : p.shape[1]] = p
                sizes[i] = p.shape[:2]
            made = np.asarray(run(canvas, sizes))
            out += [made[i, : p.shape[0], : p.shape[1]] for i, p in enumerate(part)]
        return out

    return distort


def everything(vae: Distort) -> Distort:
    """The autoencoder, then all three, half as strong."""

    def distort(pictures: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
        return [
            _bytes(
                blurred(p, 0.6)
                + rng.uniform(-TINT / 2, TINT / 2, 3)
                + rng.normal(0, NOISE / 2, p.shape)
            )
            for p in vae(pictures, rng)
        ]

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


# ----------------------------------------------------------------------------------- validating


def validate(
    task: str, made: Sequence[Trial], name: str, distort: Distort, world: World = DEFAULT_WORLD
) -> Validation:
    """Judges trials whose pictures went through a distortion."""
    rng = np.random.default_rng(9)
    scenes = [item for trial in made for item in trial.items if isinstance(item, Scene)]
    pictures = iter(distort([render(s) for s in scenes], rng))
    accepted, refused = Proportion(0, 0), Proportion(0, 0)
    by_violation: dict[str, Proportion] = {}
    for trial in made:
        items: list[Item] = [
            item if isinstance(item, Text) else Image(pixels=next(pictures)) for item in trial.items
        ]
        judged = judge(trial.case, items, "end", world).right
        if trial.right:
            accepted += judged
        else:
            refused += not judged
            by_violation[trial.name] = by_violation.get(trial.name, Proportion(0, 0)) + (not judged)
    return Validation(task, name, accepted, refused, by_violation)
