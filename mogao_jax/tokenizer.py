"""Text to ids and back: Qwen2.5's BPE, a BPE of one's own, or plain bytes.

`encode` is for what people write, so it never yields a control token: "<|im_start|>" in a user's
text is eleven or so ordinary characters. Control tokens come from `layout.py` alone, by id, and
from a chat template's own text.
"""

from __future__ import annotations

import abc
import json
import pathlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mogao_jax.chat import ChatTemplate, read_template
from mogao_jax.config.schema import TokenizerConfig
from mogao_jax.errors import ConfigError
from mogao_jax.registry import TOKENIZERS

if TYPE_CHECKING:
    import tokenizers

# In the order of ids that ByteTokenizer gives them.
SPECIAL_TOKENS = {
    "endoftext": "<|endoftext|>",
    "im_start": "<|im_start|>",
    "im_end": "<|im_end|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image_pad": "<|image_pad|>",
}


class Tokenizer(abc.ABC):
    """What the rest of the code may ask of a tokenizer.

    Attributes:
      vocab_size: every id is below it.
      endoftext, im_start, im_end, vision_start, vision_end, image_pad: ids of control tokens.
      special_ids: those six.
      control_ids: those, and what else the vocabulary marks as special (Qwen's <|video_pad|>,
        <|object_ref_start|>, ...): none of them is text.
      chat: what stands around the turns of a conversation.
    """

    vocab_size: int
    endoftext: int
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    special_ids: frozenset[int]
    control_ids: frozenset[int]
    chat: ChatTemplate = ChatTemplate()

    def _set_special(self, ids: dict[str, int]) -> None:
        for name in SPECIAL_TOKENS:
            setattr(self, name, ids[name])
        self.special_ids = self.control_ids = frozenset(ids.values())
        self._names = {ids[name]: content for name, content in SPECIAL_TOKENS.items()}
        self._set_control({content: ids[name] for name, content in SPECIAL_TOKENS.items()})

    def _set_control(self, ids: dict[str, int]) -> None:
        self._control = ids
        longest_first = sorted(ids, key=len, reverse=True)
        self._control_pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def split_template(self, text: str) -> list[int | str]:
        """A chat template's own text: ids of the control tokens in it, and what is in between.

        What people write must never come here.
        """
        pieces = self._control_pattern.split(text)
        return [self._control.get(piece, piece) for piece in pieces if piece]

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of plain text; never a control token, whatever the text spells."""

    @abc.abstractmethod
    def _decode_plain(self, ids: list[int]) -> str:
        """Text of ids among which there is no control token."""

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Text of ids. Bytes that are not UTF-8 become U+FFFD.

        Args:
          ids: int ids below `vocab_size`.
          keep_special: write control tokens out ("<|im_end|>") instead of leaving them away.
        """
        parts: list[str] = []
        run: list[int] = []
        for token in (int(i) for i in ids):
            if token not in self.special_ids:
                run.append(token)
            elif keep_special:
                parts += [self._decode_plain(run), self._names[token]]
                run = []
        parts.append(self._decode_plain(run))
        return "".join(parts)


class ByteTokenizer(Tokenizer):
    """256 bytes and the six control tokens (ids 256 to 261). Needs no file."""

    def __init__(self):
        self.vocab_size = 256 + len(SPECIAL_TOKENS)
        self._set_special({name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)})

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", errors="replace"))

    def _decode_plain(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class BpeTokenizer(Tokenizer):
    """A `tokenizers` file (tokenizer.json), such as Qwen2.5's.

    Two instances of the library's tokenizer: the whole one decodes; the one that encodes has had
    its added tokens taken away, so that not only the special ones but also Qwen's unmarked ones
    ("<tool_call>", "<|fim_prefix|>") are ordinary characters in user text.
    """

    def __init__(self, path: str | pathlib.Path):
        """Reads `path`, a tokenizer.json or the folder that holds it.

        Raises:
          ConfigError: the file is missing, not a tokenizer, or lacks a control token.
        """
        import tokenizers  # a second to import: not for those who use bytes

        file = pathlib.Path(path)
        file = file / "tokenizer.json" if file.is_dir() else file
        if not file.is_file():
            raise ConfigError(
                f"No tokenizer at {str(file)!r}. Give tokenizer.path the tokenizer.json of a "
                "Qwen2.5 checkpoint (or its folder), or use tokenizer.kind='byte'."
            )
        try:
            spec = json.loads(file.read_text(encoding="utf-8"))
            whole = tokenizers.Tokenizer.from_str(json.dumps(spec))
            added = spec.get("added_tokens", [])
            encoder = tokenizers.Tokenizer.from_str(json.dumps(_without_added(spec, added)))
        except Exception as e:  # noqa: BLE001  (all that the library raises)
            raise ConfigError(f"{str(file)!r} is not a tokenizer.json: {e}") from None
        self._whole, self._encoder = whole, encoder
        self.vocab_size = max(whole.get_vocab(with_added_tokens=True).values()) + 1
        self._set_special(_special_ids(whole, file))
        marked = {t["content"] for t in added if t.get("special")} | {*SPECIAL_TOKENS.values()}
        control = {content: whole.token_to_id(content) for content in marked}
        self._set_control({content: i for content, i in control.items() if i is not None})
        self.control_ids |= frozenset(self._control.values())
        self.chat = read_template(file)

    def encode(self, text: str) -> list[int]:
        text = text.encode("utf-8", errors="replace").decode("utf-8")  # no lone surrogates
        return self._encoder.encode(text, add_special_tokens=False).ids

    def _decode_plain(self, ids: list[int]) -> str:
        return self._whole.decode(ids, skip_special_tokens=False)


def _special_ids(whole: tokenizers.Tokenizer, file: pathlib.Path) -> dict[str, int]:
    """Ids of the six control tokens. Raises ConfigError for those that the file does not have."""
    found = {name: whole.token_to_id(content) for name, content in SPECIAL_TOKENS.items()}
    ids = {name: i for name, i in found.items() if i is not None}
    missing = [content for name, content in SPECIAL_TOKENS.items() if name not in ids]
    if missing:
        raise ConfigError(
            f"The tokenizer {str(file)!r} has no token {', '.join(missing)}. Mogao needs "
            f"all of {', '.join(SPECIAL_TOKENS.values())}: use a Qwen2.5 tokenizer, or add "
            "them to the file's added_tokens."
        )
    return ids


def _without_added(spec: dict, added: list[dict]) -> dict:
    """The file without its added tokens.

    They also leave the vocabulary proper: with `ignore_merges` a word found there whole becomes
    its id without any merge.
    """
    words = {token["content"] for token in added}
    model = dict(spec["model"])
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {word: i for word, i in model["vocab"].items() if word not in words}
    # A post-processor may refer to added tokens; encoding asks for no special tokens anyway.
    return {**spec, "added_tokens": [], "model": model, "post_processor": None}


def load_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a config asks for.

    Raises:
      ConfigError: its file is missing, unreadable or lacks a control token.
    """
    return TOKENIZERS.get(config.kind)(config)


def load_bytes(config: TokenizerConfig) -> ByteTokenizer:
    """tokenizer.kind="byte"."""
    del config
    return ByteTokenizer()


def load_file(config: TokenizerConfig) -> BpeTokenizer:
    """tokenizer.kind="file"."""
    if not config.path:
        raise ConfigError("tokenizer.kind is 'file', but tokenizer.path is empty.")
    return BpeTokenizer(config.path)
