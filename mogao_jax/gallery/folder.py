"""The folder of sampled documents: images as PNG, a JSON document each, one page about all.

    001.json  001-1.png  001-2.png  002.json ...  index.html  run.json

Each JSON document can be fed back in: its images are named by relative paths. A folder holds one
run: the files of two would not belong together, though their names are the same.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import itertools
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import mogao_jax
from mogao_jax import images as image_ops
from mogao_jax.atomic import require_writable, write_file
from mogao_jax.errors import EnvironmentProblem
from mogao_jax.gallery.page import fill_template
from mogao_jax.sequence.document import Document, Image, Text, to_json

PAGE, RUN = "index.html", "run.json"
_DEFAULT_ROOT = "samples"
_REMEDY = "Give another folder with --out."
_SMALL = 256  # images with smaller sides are shown enlarged
_OURS = re.compile(r"\d{3,}(-\d+\.png|\.json)|index\.html|run\.json")


def default_folder(name: str) -> pathlib.Path:
    """samples/<name in a form fit for files>, with a number where that is taken."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-") or "sample"
    folder = pathlib.Path(_DEFAULT_ROOT) / slug
    number = 2
    while folder.exists():
        folder = folder.with_name(f"{slug}-{number}")
        number += 1
    return folder


class Folder:
    """Writes what was sampled. Every file is whole under its name, or not there."""

    def __init__(self, path: str | os.PathLike, *, overwrite: bool = False):
        """Makes the folder and sees that it can be written.

        Args:
          overwrite: accept a folder that holds a run, whose files `clear` removes.
        Raises:
          EnvironmentProblem: it cannot be written; it holds a run.
        """
        self.path = require_writable(path, _REMEDY)
        earlier = self.files()
        if earlier and not overwrite:
            raise EnvironmentProblem(
                f"the folder {str(self.path)!r} holds what was sampled before "
                f"({len(earlier)} files, such as {earlier[0].name}); give another one with "
                "--out, or --overwrite, which removes these files."
            )

    def files(self) -> list[pathlib.Path]:
        """The files of a run that lie in the folder, by name."""
        return sorted(path for path in self.path.iterdir() if _OURS.fullmatch(path.name))

    def clear(self) -> None:
        """Removes the files of a run; nothing else of the folder."""
        try:
            for path in self.files():
                path.unlink()
        except OSError as e:
            raise EnvironmentProblem(
                f"{e.filename!r} cannot be removed ({e.strerror or e}); give another folder with "
                "--out."
            ) from e

    def holds(self, path: pathlib.Path) -> bool:
        """Whether a file is one of those that `clear` would remove."""
        path = path.resolve()
        return path.parent == self.path.resolve() and bool(_OURS.fullmatch(path.name))

    def write_image(self, number: int, index: int, image: Image) -> pathlib.Path:
        """Saves image `index` of document `number` (both count from 1); returns its path."""
        path = self.path / f"{number:03d}-{index}.png"
        self._write(path, image_ops.encoded_bytes(Image(pixels=image_ops.load_pixels(image))))
        return path

    def write_document(self, number: int, document: Document) -> pathlib.Path:
        """Saves the document, with all its images."""
        count = itertools.count(1)
        record = to_json(
            document, lambda image: {"path": self.write_image(number, next(count), image).name}
        )
        return self.write_text(
            f"{number:03d}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        )

    def write_run(self, facts: Mapping[str, Any]) -> None:
        """Saves run.json: how it all was made."""
        self.write_text(RUN, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> pathlib.Path:
        self._write(self.path / name, text.encode("utf-8", errors="replace"))
        return self.path / name

    def _write(self, path: pathlib.Path, data: bytes) -> None:
        write_file(path, data, remedy=_REMEDY)


# ------------------------------------------------------------------------------------------- page


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


def render_page(name: str, conversations: Sequence[Conversation], facts: Mapping[str, Any]) -> str:
    """The self-contained page as HTML: texts are escaped, images inlined as PNG.

    Args:
      name: its title.
      conversations: in order.
      facts: how all of it was made, {name: value}.
    """
    return fill_template(
        "mogao_jax.gallery",
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
