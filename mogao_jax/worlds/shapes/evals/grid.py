"""CardImage grids of judged cases: one PNG, and one self-contained HTML page.

Under each case stands its verdict, and the reason where it is wrong; a coloured frame says the
same of each picture.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from mogao_jax.worlds.shapes.evals.cards import Card, CardImage, Section
from mogao_jax.worlds.shapes.evals.scores import Scores, as_text

PNG_PER_CATEGORY = {"t2i": 6, "qa": 4, "edit": 4, "story": 5, "clip": 3}
HTML_PER_CATEGORY = {"t2i": 24, "qa": 12, "edit": 16, "story": 24, "clip": 12}

_WIDTH = 1280
_PICTURE = 128  # pictures are enlarged to this, by a whole factor where they are smaller
_GAP = 12
_LINE = 15
_INK, _SOFT = (31, 41, 51), (91, 103, 112)
_RIGHT, _WRONG, _GIVEN = (34, 139, 60), (200, 40, 40), (190, 196, 202)


# ------------------------------------------------------------------------------------------ PNG


def png(title: str, sections: Sequence[Section]) -> PIL.Image.Image:
    """The grid as one picture, sections below each other."""
    blocks = [_heading(title, 22)]
    for section in sections:
        blocks.append(_heading(section.title, 16))
        blocks += _rows([_card(c) for c in section.cards])
    height = sum(b.height + _GAP for b in blocks) + _GAP
    page = PIL.Image.new("RGB", (_WIDTH, height), "white")
    y = _GAP
    for block in blocks:
        page.paste(block, (_GAP, y))
        y += block.height + _GAP
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
        width = sum(c.width + _GAP for c in row)
        image = PIL.Image.new("RGB", (width, max(c.height for c in row)), "white")
        x = 0
        for made in row:
            image.paste(made, (x, 0))
            x += made.width + _GAP
        out.append(image)
    return out


def _card(card: Card) -> PIL.Image.Image:
    font = PIL.ImageFont.load_default(12)
    pictures = [_enlarged(p.pixels) for p in card.pictures]
    widths = [max(p.width + 6, _PICTURE) for p in pictures]
    width = max(sum(widths) + _GAP * max(len(widths) - 1, 0), _PICTURE + 40)
    prompt = _wrapped(card.prompt, width, font)
    over = [_wrapped(p.words, w, font) for p, w in zip(card.pictures, widths, strict=True)]
    answer = _wrapped(card.answer, width, font)
    verdict = _wrapped(_verdict(card), width, font)
    num_over = max([len(lines) for lines in over], default=0)
    tallest = max([p.height + 6 for p in pictures], default=0)
    height = _LINE * (len(prompt) + num_over + len(answer) + len(verdict)) + tallest + 10
    image = PIL.Image.new("RGB", (width, height), "white")
    draw = PIL.ImageDraw.Draw(image)
    y = _write(draw, 0, 0, prompt, _INK, font)
    x = 0
    for shown, lines, picture, w in zip(pictures, over, card.pictures, widths, strict=True):
        _write(draw, x, y, lines, _SOFT, font)
        top = y + _LINE * num_over
        frame = (x, top, x + shown.width + 5, top + shown.height + 5)
        draw.rectangle(frame, fill=_frame(picture))
        image.paste(shown, (x + 3, top + 3))
        x += w + _GAP
    y += _LINE * num_over + tallest + 4
    y = _write(draw, 0, y, answer, _SOFT, font)
    _write(draw, 0, y, verdict, _RIGHT if card.right else _WRONG, font)
    return image


def _enlarged(pixels: np.ndarray) -> PIL.Image.Image:
    image = PIL.Image.fromarray(pixels)
    longest = max(image.size)
    if longest > _PICTURE:
        image.thumbnail((_PICTURE, _PICTURE))
        return image
    by = _PICTURE // longest
    return image.resize((image.width * by, image.height * by), PIL.Image.Resampling.NEAREST)


def _frame(picture: CardImage) -> tuple[int, int, int]:
    return {None: _GIVEN, True: _RIGHT, False: _WRONG}[picture.right]


def _verdict(card: Card) -> str:
    return "right" if card.right else f"wrong: {card.reason}"


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


# ----------------------------------------------------------------------------------------- HTML

_STYLE = """
body { margin: 0 auto; max-width: 1200px; padding: 1rem; color: #1f2933;
       font: 15px/1.45 system-ui, sans-serif; background: #f5f6f8; }
h2 { margin: 1.6rem 0 .5rem; font-size: 1.1rem; }
pre { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: .8rem;
      overflow-x: auto; font-size: .8rem; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; }
.card { background: #fff; border: 1px solid #e3e6ea; border-radius: 8px; padding: .6rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-end; margin: .4rem 0; }
figure { margin: 0; max-width: 150px; }
figcaption { color: #5b6770; font-size: .8rem; }
img { display: block; image-rendering: pixelated; border: 3px solid #bec4ca; }
img.right { border-color: #228b3c; } img.wrong { border-color: #c82828; }
p { margin: 0; max-width: 40rem; } .soft { color: #5b6770; }
.verdict { font-size: .85rem; max-width: 36rem; }
.verdict.right { color: #228b3c; } .verdict.wrong { color: #c82828; }
"""


def page(scores: Scores, sections: Sequence[Section], beside: Scores | None = None) -> str:
    """The page: the tables, then every section. All texts are escaped; it loads nothing."""
    name = html.escape(f"Scores of {scores.title}")
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{name}</title><style>{_STYLE}</style></head><body><h1>{name}</h1>",
        "<p class='soft'>Every picture is judged exactly, against what its request says. Frames: "
        "green right, red wrong, grey given. Cases are the first of each category, not chosen.</p>",
        f"<details><summary>The figures</summary><pre>{html.escape(as_text(scores, beside))}</pre>"
        "</details>",
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
    figures = "".join(_html_picture(p) for p in card.pictures)
    answer = f"<p class='soft'>{html.escape(card.answer)}</p>" if card.answer else ""
    state = "right" if card.right else "wrong"
    return (
        f"<div class='card'><p>{html.escape(card.prompt)}</p><div class='pictures'>{figures}</div>"
        f"{answer}<p class='verdict {state}'>{html.escape(_verdict(card))}</p></div>"
    )


def _html_picture(picture: CardImage) -> str:
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture.pixels).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = picture.pixels.shape[:2]
    by = max(1, _PICTURE // max(height, width))
    state = {None: "given", True: "right", False: "wrong"}[picture.right]
    return (
        f"<figure><figcaption>{html.escape(picture.words)}</figcaption><img class='{state}' "
        f"width='{width * by}' height='{height * by}' alt='{state}' "
        f"src='data:image/png;base64,{data}'></figure>"
    )
