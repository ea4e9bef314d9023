"""A recipe for one's own documents: what `mogao train --data PLACE` trains.

The data decide the tokenizer, the sizes of images and the packing budgets. The rest is a small
model for a laptop (configs/small.py), or that of the checkpoint to start from. The recipe is
written into the run's folder as a config file, which can be changed and trained by itself.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mogao_jax import images as image_ops
from mogao_jax.atomic import write_file
from mogao_jax.config import recipes
from mogao_jax.config.convert import to_dict
from mogao_jax.config.files import load_config
from mogao_jax.config.geometry import VAE_GRID
from mogao_jax.config.schema import MogaoConfig, PackingConfig, SourceConfig, TokenizerConfig
from mogao_jax.data import bpe
from mogao_jax.data.inspecting import measure_sizes, suggest_budgets
from mogao_jax.data.preparing import make_preparer
from mogao_jax.data.sources import Source, open_source
from mogao_jax.errors import ConfigError, DataError, DocumentError
from mogao_jax.images import Image
from mogao_jax.paths import expanded
from mogao_jax.sampling.loading import open_checkpoint
from mogao_jax.sequence.document import Document
from mogao_jax.sequence.packing import FIELDS
from mogao_jax.tokenizer import load_tokenizer

RECIPE, TOKENIZER = "recipe.py", "tokenizer.json"
NAME = "own"  # of the data source
_VOCAB = 2048
_MEASURED = 500  # documents
_PER_ROW = 10  # documents, on average
_MOST_TOKENS = 1024  # und tokens of a row, where documents allow


class Recipe(NamedTuple):
    """A config, and what was chosen and why: a line each."""

    config: MogaoConfig
    notes: list[str]


def recipe_file(data: str, workdir: pathlib.Path, init: str = "") -> tuple[pathlib.Path, list[str]]:
    """The recipe of a run on `data`: the one in its folder, or else a new one, written there.

    Args:
      data: a JSONL file, a folder of documents or of captioned images, or a tfds data set.
      init: a checkpoint to start from, by any name that `mogao_jax.load` takes.
    Returns:
      The config file, and lines that say what was chosen.
    Raises:
      DataError: there are no documents, or none that can be used.
      ConfigError: the folder has the recipe of other data, or of another start.
      CheckpointError: there is no such checkpoint.
    """
    file = expanded(workdir) / RECIPE
    if file.exists():
        config = load_config(file)
        found = config.data.sources[NAME].path, config.train.init_from
        for flag, had, given in zip(("--data", "--init"), found, (_place(data), init), strict=True):
            if had != given:
                raise ConfigError(
                    f"{file} was made with {flag} {had or 'left out'}, not {given or 'left out'}; "
                    "give another --workdir, or remove it."
                )
        return file, [f"goes on with {file}"]
    recipe = choose(data, file.parent, init)
    write_file(file, as_python(recipe))
    return file, [*recipe.notes, f"written to {file}: change it and train it with --config"]


def choose(data: str, workdir: pathlib.Path, init: str = "") -> Recipe:
    """Chooses a recipe and writes the tokenizer that it needs; arguments and errors as above."""
    is_tfds = (expanded(data) / "dataset_info.json").is_file()
    settings = SourceConfig(kind="tfds" if is_tfds else "documents", path=_place(data))
    if init:
        base = dataclasses.replace(load_config(recipes.find("small")), name="own")
        start = open_checkpoint(init).config
        kept = ("tokenizer", "images", "layout", "model", "vae", "vit", "objective", "sampling")
        config = dataclasses.replace(base, **{name: getattr(start, name) for name in kept})
        config = _set(config, "train", init_from=init)
        config = _set(config, "optimizer", learning_rate=base.optimizer.learning_rate / 3)
    else:
        config = dataclasses.replace(load_config(recipes.find("small")), name="own")
    config = _set(config, "data", sources={NAME: settings})
    source = open_source(NAME, settings, seed=0, split="train", images=config.images)
    measured = list(_some(source))
    notes = [f"data: {len(source):,} documents for training in {settings.path}"]
    if init:
        notes.append(f"model: that of {init}, with its tokenizer and sizes of images")
    else:
        config, more = _fit_tokenizer(config, source, workdir)
        config, yet_more = _fit_images(config, measured)
        notes += ["model: small (configs/small.py)", *more, *yet_more]
    config, budgets = _fit_budgets(config)
    return Recipe(config, [*notes, budgets, f"time: {config.train.max_minutes:g} minutes"])


def as_python(recipe: Recipe) -> str:
    """A config file whose `get_config()` is the recipe's config."""
    source = recipe.config.data.sources[NAME]
    lines = [
        '"""A recipe for one\'s own data, chosen by `mogao train --data`:',
        "",
        *recipe.notes,
        "",
        "Run: mogao train --config=THIS_FILE --workdir DIR",
        '"""',
        "",
        "from mogao_jax.config import default_config, source",
        "",
        "",
        "def get_config():",
        "    c = default_config()",
        f"    c.data.sources.{NAME} = source(kind={source.kind!r}, path={source.path!r})",
        *(
            f"    c.{path} = {value!r}"
            for path, value in _differences(to_dict(recipe.config), to_dict(MogaoConfig()))
            if not path.startswith("data.sources")
        ),
        "    return c",
        "",
    ]
    return "\n".join(lines)


def _differences(
    new: Mapping[str, Any], old: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for name, value in new.items():
        before = old.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differences(value, before, f"{prefix}{name}.")
        elif value != before:
            yield f"{prefix}{name}", value


def _place(data: str) -> str:
    return str(expanded(data).absolute())


def _set(config: MogaoConfig, section: str, **fields: Any) -> MogaoConfig:
    changed = dataclasses.replace(getattr(config, section), **fields)
    return dataclasses.replace(config, **{section: changed})


def _some(source: Source) -> Iterator[Document]:
    """Documents spread over the source; broken ones are left out."""
    step = max(1, len(source) // _MEASURED)
    found = False
    for index in range(0, len(source), step):
        try:
            document = source[index]
        except DocumentError:
            continue
        found = True
        yield document
    if not found:
        raise DataError("no document can be used; `mogao data inspect` says why.")


def _fit_tokenizer(
    config: MogaoConfig, source: Source, workdir: pathlib.Path
) -> tuple[MogaoConfig, list[str]]:
    """A BPE of the documents' own texts."""
    texts = list(itertools.islice(bpe.texts_of(source), 100_000))
    tokenizer = bpe.train_bpe([*texts, *bpe.CHAT_HEADERS * max(1, len(texts) // 10)], _VOCAB)
    file = workdir.absolute() / TOKENIZER
    bpe.save(tokenizer, file)
    settings = TokenizerConfig(kind="file", path=str(file))
    return dataclasses.replace(config, tokenizer=settings), [
        f"tokenizer: {tokenizer.get_vocab_size():,} tokens, learned from {len(texts):,} texts"
    ]


def _fit_images(config: MogaoConfig, documents: list[Document]) -> tuple[MogaoConfig, list[str]]:
    """Images no larger than the data's, nor than the base recipe's."""
    sizes = []
    for item in itertools.chain.from_iterable(d.items for d in documents):
        if isinstance(item, Image):
            try:
                sizes.append(image_ops.load_pixels(item).shape[:2])
            except DocumentError:
                continue
    if not sizes:
        return config, ["images: none"]
    limit = config.images.max_pixels
    median = float(np.median([h * w for h, w in sizes]))
    pixels = min(limit, max(1, round(median / VAE_GRID**2)) * VAE_GRID**2)
    fitted = [
        image_ops.target_size(h, w, pixels, max_side=config.images.max_side) for h, w in sizes
    ]
    longest = max(map(max, fitted))
    note = f"images: up to {pixels} pixels each (about {math.isqrt(pixels)} squared)"
    if median > limit:
        note += f"; the data's have {median:,.0f}: larger ones need an accelerator"
    return _set(config, "images", max_pixels=pixels, max_side=longest), [note]


def _fit_budgets(config: MogaoConfig) -> tuple[MogaoConfig, str]:
    """Packing budgets in proportion to the documents, as `mogao data budgets` has them."""
    roomy = PackingConfig(*(1 << 20,) * 5)
    preparer = make_preparer(
        dataclasses.replace(config, packing=roomy), load_tokenizer(config.tokenizer), "train"
    )
    found = measure_sizes(preparer, _MEASURED)
    mean = np.concatenate(list(found.values())).mean(axis=0)
    chosen = suggest_budgets(found, round(min(_MOST_TOKENS, _PER_ROW * float(mean[0]))))
    fields = {FIELDS[name]: value for name, value in chosen._asdict().items()}
    sizes = ", ".join(f"{value} {name}" for name, value in chosen._asdict().items())
    return _set(config, "packing", **fields), f"rows: {sizes}"
