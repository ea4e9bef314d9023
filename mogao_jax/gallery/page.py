"""One self-contained page about sampled documents: what was said, what was drawn, and how.

Every text is escaped by the template engine; pictures are inlined as PNG.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import mogao_jax
from mogao_jax import images as image_ops
from mogao_jax.errors import EnvironmentProblem
from mogao_jax.sequence.document import Document, Image, Text

_SMALL = 256  # pictures with smaller sides are shown enlarged


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One sampled document.

    Attributes:
      document: the prompt, and after `num_given` items what was generated.
      title: its name on the page.
      caption: how it was made and why it ended, in words.
    """

    document: Document
    num_given: int
    title: str
    caption: str


def render(name: str, conversations: Sequence[Conversation], facts: Mapping[str, Any]) -> str:
    """The page as HTML.

    Args:
      name: its title.
      conversations: in order.
      facts: how all of it was made, {name: value}.
    Raises:
      EnvironmentProblem: jinja2 is missing.
    """
    try:
        import jinja2
    except ImportError as e:
        raise EnvironmentProblem(
            "the page needs jinja2, which is not installed: pip install 'mogao_jax[demo]'"
        ) from e
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mogao_jax.gallery", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        name=name,
        version=mogao_jax.__version__,
        conversations=[_shown(c) for c in conversations],
        facts={key: str(value) for key, value in facts.items()},
        written=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _shown(conversation: Conversation) -> dict[str, Any]:
    """Items in turns: neighbours of the same role, given or generated, stand together."""
    turns: list[dict[str, Any]] = []
    for index, item in enumerate(conversation.document.items):
        who = (item.role or "", index >= conversation.num_given)
        if not turns or turns[-1]["who"] != who:
            role = item.role or ("model" if who[1] else "given")
            turns.append({"who": who, "role": role, "is_generated": who[1], "items": []})
        turns[-1]["items"].append(_item(item))
    return {"title": conversation.title, "caption": conversation.caption, "turns": turns}


def _item(item: Text | Image) -> dict[str, Any]:
    if isinstance(item, Text):
        return {"text": item.text}
    pixels = image_ops.load_pixels(item)
    height, width = pixels.shape[:2]
    png = image_ops.encoded_bytes(Image(pixels=pixels))
    grow = max(1, _SMALL // max(height, width))
    return {
        "image": "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        "size": f"{height} x {width}",
        "width": width * grow,
    }
