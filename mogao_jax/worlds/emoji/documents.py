"""Noto emoji as documents: captions, names, skin-tone edits and skin-tone series.

Input: a zip with `index.jsonl` and `images/<file>.png`. A line of the index is
{"file", "name", "short_names", "category", "subcategory", "variants": [{"skin_tone", "file"}]}.

Output: `images/` and, for each kind of document, `<kind>.jsonl` and `<kind>.validation.jsonl`:

    captions  "draw a red apple" -> picture
    names     picture, "what is this?" -> "red apple"
    edits     picture, "make the skin tone dark" -> picture
    series    plain text and pictures in turn: one emoji in several skin tones

An emoji with all its variants is either in training or in validation. Wording is drawn by the
emoji's file name, so a second conversion writes the same files.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import zlib
from typing import Any

import numpy as np

from mogao_jax.errors import DataError, EnvironmentProblem
from mogao_jax.paths import expanded
from mogao_jax.worlds.emoji.archive import SafeZip

KINDS = ("captions", "names", "edits", "series")
VALIDATION_EVERY = 20
MAX_INDEX_BYTES = 64 * 2**20
MAX_IMAGE_BYTES = 2**20
_FILE = re.compile(r"[0-9a-f-]{1,120}\.png")

_CAPTIONS = (
    "{name}",
    "an emoji of {name}",
    "draw {name}",
    "Draw an emoji: {name}.",
    "{name}, emoji",
    "a small picture of {name}",
    "Please show me {name}.",
    "the emoji :{short}:",
    "{name} ({category})",
    "an icon from {category}: {name}",
)
_QUESTIONS = (
    "What is this?",
    "What does this emoji show?",
    "Name this emoji.",
    "What do you see?",
    "What is this emoji called?",
)
_ANSWERS = ("{name}", "{name}.", "This is {name}.", "It shows {name}.", "The emoji for {name}.")
_CATEGORY_QUESTIONS = ("Which group does this emoji belong to?", "What category is this?")
EDITS = (
    "make the skin tone {tone}",
    "Change the skin tone to {tone}.",
    "give it {tone} skin",
    "The same with a {tone} skin tone, please.",
    "{tone} skin tone instead",
    "now with {tone} skin",
)
EDITS_TO_DEFAULT = (
    "make it yellow again",
    "Take the skin tone away.",
    "back to the default colour",
    "The same in plain yellow, please.",
)
_DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji: `variants` maps a skin tone ("dark", or "light and dark") to its file."""

    file: str
    name: str
    short_names: tuple[str, ...]
    category: str
    variants: dict[str, str]

    @property
    def is_validation(self) -> bool:
        return zlib.crc32(self.file.encode()) % VALIDATION_EVERY == 0


def convert(
    zip_path: str | pathlib.Path, out: str | pathlib.Path, count: int = 0
) -> dict[str, int]:
    """Converts the archive; returns the number of documents of each file written.

    Args:
      count: how many emoji to take, evenly over the index (0: all), each with its variants.
    Raises:
      DataError: the archive is missing, damaged, or not of this form; or holds fewer emoji.
      EnvironmentProblem: `out` cannot be written.
    """
    out = expanded(out)
    with SafeZip(zip_path) as archive:
        emojis = read_index(archive.read("index.jsonl", MAX_INDEX_BYTES).decode("utf-8", "replace"))
        if count < 0 or count > len(emojis):
            raise DataError(
                f"{count} emoji are asked for; the archive holds {len(emojis)}. Ask for 1 to "
                "that many, or 0 for all (--count)."
            )
        if count:
            emojis = [emojis[i * len(emojis) // count] for i in range(count)]
        try:
            return _write(archive, emojis, out)
        except OSError as e:
            raise EnvironmentProblem(f"cannot write to {str(out)!r}: {e.strerror or e}.") from None


def read_index(text: str) -> list[Emoji]:
    """Parses and checks the index. Raises DataError, naming the line and field."""
    emojis = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            emojis.append(_parse(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise DataError(f"index.jsonl:{number} is not an emoji ({e!r}).") from None
    if not emojis:
        raise DataError("index.jsonl names no emoji.")
    return emojis


def _parse(record: dict[str, Any]) -> Emoji:
    def file_name(value: Any) -> str:
        if not isinstance(value, str) or not _FILE.fullmatch(value):
            raise ValueError(f"file name {value!r}")
        return value

    def text(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"text expected, got {value!r}")
        return " ".join(value.split())

    variants = {
        text(v["skin_tone"]).replace("+", " and "): file_name(v["file"])
        for v in record.get("variants", [])
    }
    return Emoji(
        file=file_name(record["file"]),
        name=text(record["name"]),
        short_names=tuple(text(s) for s in record.get("short_names", [])),
        category=text(record["category"]),
        variants=variants,
    )


def _write(archive: SafeZip, emojis: list[Emoji], out: pathlib.Path) -> dict[str, int]:
    (out / "images").mkdir(parents=True, exist_ok=True)
    documents: dict[str, list[dict]] = {}
    for emoji in emojis:
        for file in (emoji.file, *emoji.variants.values()):
            (out / "images" / file).write_bytes(archive.read(f"images/{file}", MAX_IMAGE_BYTES))
        for kind in KINDS:
            name = f"{kind}.validation.jsonl" if emoji.is_validation else f"{kind}.jsonl"
            documents.setdefault(name, []).extend(documents_of(emoji, kind))
    for name, records in documents.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (out / name).write_text("".join(lines), encoding="utf-8")
    if "LICENSE.txt" in archive:
        (out / "LICENSE.txt").write_bytes(archive.read("LICENSE.txt", MAX_IMAGE_BYTES))
    return {name: len(records) for name, records in sorted(documents.items())}


def documents_of(emoji: Emoji, kind: str) -> list[dict[str, Any]]:
    """The documents of one kind, in JSON form."""
    rng = np.random.default_rng(zlib.crc32(f"{kind}/{emoji.file}".encode()))
    make = {"captions": _captions, "names": _names, "edits": _edits, "series": _series}[kind]
    stem = emoji.file.removesuffix(".png")
    return [
        {"id": f"emoji/{kind}/{stem}/{i}", "items": items}
        for i, items in enumerate(make(emoji, rng))
    ]


def _text(text: str, role: str | None) -> dict[str, Any]:
    return {"type": "text", "text": text, **({"role": role} if role else {})}


def _image(file: str, role: str | None) -> dict[str, Any]:
    return {"type": "image", "path": f"images/{file}", **({"role": role} if role else {})}


def _pick(rng: np.random.Generator, choices, count: int) -> list[str]:
    order = rng.permutation(len(choices))[:count]
    return [choices[int(i)] for i in order]


def _toned(emoji: Emoji, tone: str) -> str:
    if tone == _DEFAULT:
        return emoji.name
    return f"{emoji.name} with {tone} skin tone{'s' if ' and ' in tone else ''}"


def _fill(template: str, emoji: Emoji, name: str) -> str:
    short = emoji.short_names[0] if emoji.short_names else emoji.name.replace(" ", "_")
    return template.format(name=name, short=short, category=emoji.category)


def _captions(emoji: Emoji, rng: np.random.Generator) -> list[list[dict]]:
    found = []
    for template in _pick(rng, _CAPTIONS, 6):
        found.append((_fill(template, emoji, emoji.name), emoji.file))
    for tone in _pick(rng, list(emoji.variants), 5):
        plain = [t for t in _CAPTIONS if "{short}" not in t]  # a short name knows no tones
        template = _pick(rng, plain, 1)[0]
        found.append((_fill(template, emoji, _toned(emoji, tone)), emoji.variants[tone]))
    return [[_text(text, "user"), _image(file, "assistant")] for text, file in found]


def _names(emoji: Emoji, rng: np.random.Generator) -> list[list[dict]]:
    def answered(file: str, question: str, answer: str) -> list[dict]:
        return [_image(file, "user"), _text(question, "user"), _text(answer, "assistant")]

    found = []
    questions, answers = _pick(rng, _QUESTIONS, 2), _pick(rng, _ANSWERS, 2)
    for question, answer in zip(questions, answers, strict=True):
        found.append(answered(emoji.file, question, _fill(answer, emoji, emoji.name)))
    question = _pick(rng, _CATEGORY_QUESTIONS, 1)[0]
    found.append(answered(emoji.file, question, emoji.category))
    for tone in _pick(rng, list(emoji.variants), 2):
        question, answer = _pick(rng, _QUESTIONS, 1)[0], _pick(rng, _ANSWERS, 1)[0]
        name = _toned(emoji, tone)
        found.append(answered(emoji.variants[tone], question, _fill(answer, emoji, name)))
    return found


def files_by_tone(emoji: Emoji) -> dict[str, str]:
    return {_DEFAULT: emoji.file, **emoji.variants} if emoji.variants else {}


def _edits(emoji: Emoji, rng: np.random.Generator) -> list[list[dict]]:
    tones = files_by_tone(emoji)
    pairs = [(a, b) for a in tones for b in tones if a != b]
    found = []
    for index in rng.permutation(len(pairs))[:16]:
        before, after = pairs[int(index)]
        if after == _DEFAULT:
            text = _pick(rng, EDITS_TO_DEFAULT, 1)[0]
        else:
            text = _pick(rng, EDITS, 1)[0].format(tone=after)
        found.append(
            [_image(tones[before], "user"), _text(text, "user"), _image(tones[after], "assistant")]
        )
    return found


def _series(emoji: Emoji, rng: np.random.Generator) -> list[list[dict]]:
    tones = files_by_tone(emoji)
    found = []
    for _ in range(2 if tones else 0):
        chosen = _pick(rng, list(tones), int(rng.integers(2, 5)))
        items = [_text(f"The emoji for {emoji.name} in {len(chosen)} skin tones.\n", None)]
        for tone in chosen:
            items += [_text(f"{tone}: ", None), _image(tones[tone], None)]
        found.append(items)
    return found
