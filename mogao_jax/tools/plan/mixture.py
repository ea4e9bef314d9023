"""Rows that a config's data would fill: from the data where they are here, else made up.

What attention costs depends on where documents are in a row, so rows are really laid out and
packed. Where a config names files that are not here, documents of the same kind replace them:
blank images and letters, since only sizes matter.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np

from mogao_jax.config.schema import MogaoConfig, SourceConfig
from mogao_jax.errors import ConfigError, DocumentError, MogaoError
from mogao_jax.paths import expanded
from mogao_jax.registry import SOURCES
from mogao_jax.sequence.batch import PackedBatch, Sizes, sizes
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.sequence.layout import lay_out
from mogao_jax.sequence.packing import Packer, budgets, exceeds, pack_row, stack_rows
from mogao_jax.tokenizer import ByteTokenizer, load_tokenizer

# Assumed of documents that are made up: means of log-normal lengths in tokens. Captions written
# by a model are long; web pages have some sentences between images.
CAPTION, QUESTION, ANSWER, PASSAGE, PAGE = 80, 30, 120, 80, 800
SPREAD = 0.5  # of the logarithms
IMAGES = 3.5  # mean number of an interleaved document's images, at least 2 (geometric)
ASPECTS = (0.5, 2.0)  # of images: log-uniform; all at the config's full area
POOL = 48  # documents to choose rows from; more fill better and take longer


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows [R, ...] and where they come from, in words."""

    batch: PackedBatch
    origin: str


def packed_rows(config: MogaoConfig, num_rows: int, seed: int = 0) -> Rows:
    """Rows of the config's own data, if all of it is here; else of made-up documents.

    Args:
      num_rows: R.
      seed: of the made-up documents.
    Raises:
      ConfigError: no document of the mixture fits the budgets.
    """
    sources = [s for s in config.data.sources.values() if s.weight > 0]
    here = all(not SOURCES.get(s.kind).needs_path or pathlib.Path(s.path).exists() for s in sources)
    tokenizer = config.tokenizer
    here = here and (tokenizer.kind != "file" or expanded(tokenizer.path).exists())
    origin = "made-up documents of the config's mixture"
    if sources and here:
        try:
            return Rows(_own_rows(config, num_rows), "the config's own data")
        except MogaoError as e:  # the plan goes on, and says why
            origin += f" (its own data cannot be used: {e})"
    return Rows(_made_up_rows(config, num_rows, seed), origin)


def _own_rows(config: MogaoConfig, num_rows: int) -> PackedBatch:
    from mogao_jax.data.pipeline import make_train_iterator

    train = dataclasses.replace(config.train, global_batch_rows=num_rows, grad_accum_steps=1)
    data = dataclasses.replace(config.data, num_workers=0)
    small = dataclasses.replace(config, train=train, data=data)
    iterator = make_train_iterator(small, tokenizer=load_tokenizer(config.tokenizer))
    try:
        return jax.tree.map(lambda x: x[0], next(iterator))  # its one micro-step
    finally:
        iterator.close()


def _made_up_rows(config: MogaoConfig, num_rows: int, seed: int) -> PackedBatch:
    rng = np.random.default_rng(seed)
    limits = budgets(config.packing)
    packer = Packer(limits, min(config.packing.pool, POOL))
    rows: list[PackedBatch] = []
    refused = 0
    while len(rows) < num_rows:
        while packer.wanted:
            found = _fitting(config, rng, limits)
            if found is None:
                refused += 1
                if refused > 20 * POOL:
                    raise ConfigError(
                        "documents of the config's mixture do not fit config.packing's budgets; "
                        "raise und_tokens, clean_tokens, noised_tokens, images and vit_patches "
                        "(`mogao data budgets` proposes them), or lower images.max_pixels."
                    )
            else:
                packer.add(found, sizes(found))
        taken = packer.take_row()
        rows.append(
            pack_row(taken, limits, config.images.max_side, merge_size=config.vit.merge_size)
        )
    return stack_rows(rows)


def _fitting(config: MogaoConfig, rng: np.random.Generator, limits: Sizes) -> PackedBatch | None:
    """A document of the mixture, laid out; None if it does not fit."""
    sources = list(config.data.sources.values()) or [SourceConfig(options={"task": "story"})]
    weights = np.array([s.weight for s in sources])
    source = sources[rng.choice(len(sources), p=weights / weights.sum())]
    document = made_up_document(source, config, rng)
    try:
        laid = lay_out(
            document,
            tokenizer=ByteTokenizer(),  # one token per letter
            config=config,
            rng=rng,
        )
    except DocumentError:
        return None
    return None if exceeds(sizes(laid), limits) else laid


def made_up_document(source: SourceConfig, config: MogaoConfig, rng) -> Document:
    """A document of the kind that a source's option `task` names; without one, by its weights.

    text: a page. qa: an image, question and answer. t2i: a caption, then its image.
    edit: two images. story, clip, and sources that generate: an interleaved document.
    """
    task = source.options.get("task") or ("story" if source.flow_weight else "qa")
    if task == "text":
        return Document((_text(rng, PAGE),))
    if task == "qa":
        question = _text(rng, QUESTION, "user", loss=False)
        answer = _text(rng, ANSWER, "assistant")
        return Document((_image(config, rng, "user", loss=False), question, answer))
    if task == "t2i":
        caption = _text(rng, CAPTION, "user", loss=False)
        return Document((caption, _image(config, rng, "assistant")))
    if task == "edit":
        before = _image(config, rng, "user", loss=False)
        wish = _text(rng, QUESTION, "user", loss=False)
        return Document((before, wish, _image(config, rng, "assistant")))
    items: list[Text | Image] = []
    for _ in range(1 + rng.geometric(1 / (IMAGES - 1))):
        items += [_text(rng, PASSAGE), _image(config, rng)]
    return Document((*items, _text(rng, PASSAGE)))


def _text(rng, mean: float, role=None, loss: bool = True) -> Text:
    length = np.exp(rng.normal(np.log(mean) - SPREAD**2 / 2, SPREAD))
    return Text("x" * max(1, round(length)), role=role, loss=loss)


def _image(config: MogaoConfig, rng, role=None, loss: bool = True) -> Image:
    aspect = np.exp(rng.uniform(*np.log(ASPECTS)))
    height = np.sqrt(config.images.max_pixels * aspect)
    size = max(16, round(height)), max(16, round(height / aspect)), 3
    return Image(pixels=np.zeros(size, np.uint8), role=role, loss=loss)
