"""Judged cases as people look at them: one PNG grid, and one self-contained HTML page.

Under each case stands its verdict, and the reason where it is wrong; a coloured frame says the
same of each image.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import itertools
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

RIGHT, WRONG, GIVEN = (34, 139, 60), (200, 40, 40), (190, 196, 202)  # of frames and verdicts
_INK, _SOFT = (31, 41, 51), (91, 103, 112)
_WIDTH = 1280
_SIDE = 128  # images are enlarged to this, by a whole factor where they are smaller
_GAP = 12
_LINE = 15


@dataclasses.dataclass(frozen=True, eq=False)
class CardImage:
    """An image with the words over it and its verdict; None if it was given."""

    pixels: np.ndarray
    words: str = ""
    right: bool | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Card:
    """A case as people look at it."""

    prompt: str  # the words that were asked
    images: tuple[CardImage, ...]  # in order, given ones too
    answer: str  # text that was generated after the last image (answers, closing texts)
    right: bool  # the verdict
    reason: str  # why not

    @property
    def verdict(self) -> str:
        return "right" if self.right else f"wrong: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Section:
    """Cards under a title."""

    title: str
    cards: tuple[Card, ...]


# ----------------------------------------------------------------------------------------- PNG


def png(title: str, sections: Sequence[Section]) -> PIL.Image.Image:
    """The grid as one image, sections below each other."""
    blocks = [_heading(title, 22)]
    for section in sections:
        blocks.append(_heading(section.title, 16))
        blocks += _rows([card_image(c) for c in section.cards])
    edges = list(itertools.accumulate((b.height + _GAP for b in blocks), initial=_GAP))
    page = PIL.Image.new("RGB", (_WIDTH, edges[-1]), "white")
    for block, y in zip(blocks, edges[:-1], strict=True):
        page.paste(block, (_GAP, y))
    return page


def _heading(text: str, size: int) -> PIL.Image.Image:
    image = PIL.Image.new("RGB", (_WIDTH - 2 * _GAP, size + 10), "white")
    PIL.ImageDraw.Draw(image).text((0, 4), _plain(text), _INK, PIL.ImageFont.load_default(size))
    return image


def _rows(cards: Sequence[PIL.Image.Image]) -> list[PIL.Image.Image]:
    """Cards side by side, as many as there is room for."""
    rows: list[list[PIL.Image.Image]] = [[]]
    for made in cards:
        used = sum(c.width + _GAP for c in rows[-1])
        if rows[-1] and used + made.width > _WIDTH - 2 * _GAP:
            rows.append([])
        rows[-1].append(made)
    out = []
    for row in rows:
        edges = list(itertools.accumulate((c.width + _GAP for c in row), initial=0))
        image = PIL.Image.new("RGB", (edges[-1], max(c.height for c in row)), "white")
        for made, x in zip(row, edges[:-1], strict=True):
            image.paste(made, (x, 0))
        out.append(image)
    return out


def card_image(card: Card) -> PIL.Image.Image:
    """A card as an RGB image; images in frames of RIGHT, WRONG or GIVEN, 3 pixels wide."""
    font = PIL.ImageFont.load_default(12)
    images = [_enlarged(i.pixels) for i in card.images]
    widths = [max(i.width + 6, _SIDE) for i in images]
    width = max(sum(widths) + _GAP * max(len(widths) - 1, 0), _SIDE + 40)
    prompt, answer, verdict = (
        _wrapped(words, width, font) for words in (card.prompt, card.answer, card.verdict)
    )
    over = [_wrapped(i.words, w, font) for i, w in zip(card.images, widths, strict=True)]
    num_over = max(map(len, over), default=0)
    tallest = max((i.height + 6 for i in images), default=0)
    height = _LINE * (len(prompt) + num_over + len(answer) + len(verdict)) + tallest + 10
    drawn = PIL.Image.new("RGB", (width, height), "white")
    draw = PIL.ImageDraw.Draw(drawn)
    y = _write(draw, 0, 0, prompt, _INK, font)
    x = 0
    for image, lines, shown, w in zip(images, over, card.images, widths, strict=True):
        _write(draw, x, y, lines, _SOFT, font)
        top = y + _LINE * num_over
        frame = {None: GIVEN, True: RIGHT, False: WRONG}[shown.right]
        draw.rectangle((x, top, x + image.width + 5, top + image.height + 5), fill=frame)
        drawn.paste(image, (x + 3, top + 3))
        x += w + _GAP
    y += _LINE * num_over + tallest + 4
    y = _write(draw, 0, y, answer, _SOFT, font)
    _write(draw, 0, y, verdict, RIGHT if card.right else WRONG, font)
    return drawn


def _enlarged(pixels: np.ndarray) -> PIL.Image.Image:
    image = PIL.Image.fromarray(pixels)
    if max(image.size) > _SIDE:
        image.thumbnail((_SIDE, _SIDE))
        return image
    by = _SIDE // max(image.size)
    return image.resize((image.width * by, image.height * by), PIL.Image.Resampling.NEAREST)


def _plain(text: str) -> str:
    """What the built-in font can draw."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _wrapped(text: str, width: int, font, most: int = 6) -> list[str]:
    lines: list[str] = []
    for word in _plain(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1] + " ..."]


def _write(draw, x: int, y: int, lines: Sequence[str], color, font) -> int:
    for line in lines:
        draw.text((x, y), line, color, font)
        y += _LINE
    return y


# ---------------------------------------------------------------------------------------- HTML

_STYLE = """
body { margin: 0 auto; max-width: 1200px; padding: 1rem; color: #1f2933;
       font: 15px/1.45 system-ui, sans-serif; background: #f5f6f8; }
h2 { margin: 1.6rem 0 .5rem; font-size: 1.1rem; }
pre { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: .8rem;
      overflow-x: auto; font-size: .8rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; }
.card { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: .6rem; }
.images { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-end; margin: .4rem 0; }
figure { margin: 0; max-width: 150px; }
figcaption { color: #5b6770; font-size: .8rem; }
img { display: block; image-rendering: pixelated; border: 3px solid #bec4ca; }
img.right { border-color: #228b3c; } img.wrong { border-color: #c82828; }
p { margin: 0; max-width: 40rem; } .soft { color: #5b6770; }
.verdict { font-size: .85rem; max-width: 36rem; }
.verdict.right { color: #228b3c; } .verdict.wrong { color: #c82828; }
"""


def page(title: str, note: str, figures: str, sections: Sequence[Section]) -> str:
    """The page: a note, the figures as text, then every section.

    All texts are escaped; it loads nothing.
    """
    name = html.escape(title)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>",
        f"<p class='soft'>{html.escape(note)} Frames: green right, red wrong, grey given. Cases "
        "are the first of each category, not chosen.</p>",
        f"<details><summary>The figures</summary><pre>{html.escape(figures)}</pre></details>",
    ]
    for section in sections:
        right = sum(c.right for c in section.cards)
        parts.append(
            f"<h2>{html.escape(section.title)} <span class='soft'>({right} of "
            f"{len(section.cards)} shown are right)</span></h2><div class='cards'>"
        )
        parts += [_html_card(c) for c in section.cards]
        parts.append("</div>")
    return "\n".join([*parts, "</body></html>"])


def _html_card(card: Card) -> str:
    figures = "".join(map(_html_image, card.images))
    answer = f"<p class='soft'>{html.escape(card.answer)}</p>" if card.answer else ""
    state = "right" if card.right else "wrong"
    return (
        f"<div class='card'><p>{html.escape(card.prompt)}</p><div class='images'>{figures}</div>"
        f"{answer}<p class='verdict {state}'>{html.escape(card.verdict)}</p></div>"
    )


def _html_image(image: CardImage) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image.pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = image.pixels.shape[:2]
    by = max(1, _SIDE // max(height, width))
    state = {None: "given", True: "right", False: "wrong"}[image.right]
    return (
        f"<figure><figcaption>{html.escape(image.words)}</figcaption><img class='{state}' "
        f"width='{width * by}' height='{height * by}' alt='{state}' "
        f"src='data:image/png;base64,{data}'></figure>"
    )
