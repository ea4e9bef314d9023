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
from mogao_jax.sequence.document import Document, Image, Text, to_json

PAGE, RUN = "index.html", "run.json"
_REMEDY = "Give another folder with --out."
_SMALL = 256  # images with smaller sides are shown enlarged
_OURS = re.compile(r"\d{3,}(-\d+\.png|\.json)|index\.html|run\.json")


def default_folder(name: str) -> pathlib.Path:
    """samples/<name in a form fit for files>, with a number where that is taken."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:48].strip("-") or "sample"
    names = itertools.chain([slug], (f"{slug}-{number}" for number in itertools.count(2)))
    folders = (pathlib.Path("samples", name) for name in names)
    return next(folder for folder in folders if not folder.exists())


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
        png = image_ops.encoded_bytes(Image(pixels=image_ops.load_pixels(image)))
        write_file(path, png, remedy=_REMEDY)
        return path

    def write_document(self, number: int, document: Document) -> pathlib.Path:
        """Saves the document, with all its images."""
        count = itertools.count(1)
        record = to_json(
            document, lambda image: {"path": self.write_image(number, next(count), image).name}
        )
        return self._write_json(f"{number:03d}.json", record)

    def write_run(self, facts: Mapping[str, Any]) -> None:
        """Saves run.json: how it all was made."""
        self._write_json(RUN, facts)

    def _write_json(self, name: str, record: Mapping[str, Any]) -> pathlib.Path:
        return self.write_text(name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> pathlib.Path:
        write_file(self.path / name, text.encode("utf-8", errors="replace"), remedy=_REMEDY)
        return self.path / name


# ------------------------------------------------------------------------------------------- page


@dataclasses.dataclass(frozen=True)
class Conversation:
    """One sampled document."""

    document: Document  # the prompt, and after `num_given` items what was generated
    num_given: int
    title: str  # its name on the page
    caption: str  # how it was made and why it ended, in words


def render_page(name: str, conversations: Sequence[Conversation], facts: Mapping[str, Any]) -> str:
    """The self-contained page as HTML, titled `name`: texts are escaped, images inlined as PNG.

    Facts say how all of it was made, {name: value}.
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
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"image": url, "size": f"{height} x {width}", "width": width * grow}


def fill_template(package: str, **values: Any) -> str:
    """The page.html of a package, as HTML; text is escaped, and an unknown name is an error.

    Raises:
      EnvironmentProblem: jinja2 is missing.
    """
    try:
        import jinja2  # not for commands that write no page
    except ImportError as e:
        raise EnvironmentProblem(
            "the page needs jinja2, which is not installed: pip install 'mogao_jax[demo]'"
        ) from e
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(**values)
