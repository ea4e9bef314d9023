"""Chat templates: what stands around the turns of a conversation.

A tokenizer's own template (Hugging Face's Jinja form, beside its tokenizer.json) is rendered with
placeholders in place of what was said. So people's words are never part of what is rendered, and
cannot spell control tokens: only the template's own text may (`Tokenizer.encode_template`).
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mogao_jax.errors import ConfigError, DocumentError

TEMPLATE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
MAX_TEMPLATE_CHARS = 1_000_000
END = "<|im_end|>"  # of a turn: where sampling stops


class ChatTemplate:
    """What stands before, between and after turns.

    Without a `source` it is plain ChatML, whose turns are "<|im_start|>role\\n ... <|im_end|>\\n"
    and nothing else. `tokens` names control tokens for the template, such as bos_token.
    """

    def __init__(self, source: str | None = None, tokens: dict[str, str] | None = None):
        """Raises ConfigError for a template that is not Jinja's."""
        self.source = source
        self.tokens = tokens or {}
        self._compiled = None if source is None else _compile(source)
        self._known: dict[tuple[tuple[str, ...], bool], tuple[str, ...]] = {}

    def pieces(self, roles: Sequence[str], *, continues: bool = False) -> tuple[str, ...]:
        """The text around the turns of these roles: before the first, ..., after the last.

        Args:
          roles: user, assistant or system, one per turn.
          continues: the assistant's next turn is opened at the end.
        Returns:
          One string more than there are roles.
        Raises:
          DocumentError: the template refuses such a conversation, leaves a turn out, or ends
            turns in another way than with <|im_end|>.
        """
        key = (tuple(roles), continues)
        if key not in self._known:
            self._known[key] = self._chatml(*key) if self._compiled is None else self._made(*key)
        return self._known[key]

    @staticmethod
    def _chatml(roles: tuple[str, ...], continues: bool) -> tuple[str, ...]:
        opened = [f"<|im_start|>{role}\n" for role in roles]
        closed = "<|im_end|>\n"
        after = closed + ("<|im_start|>assistant\n" if continues else "")
        return (opened[0], *(closed + begin for begin in opened[1:]), after)

    def _made(self, roles: tuple[str, ...], continues: bool) -> tuple[str, ...]:
        import jinja2

        assert self._compiled is not None
        marks = [f"\ue000{i}\ue001" for i in range(len(roles))]
        messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)]
        what = f"the tokenizer's chat template, for turns of {', '.join(roles)}"
        try:
            text = self._compiled.render(
                messages=messages, add_generation_prompt=continues, **self.tokens
            )
        except jinja2.TemplateError as e:
            raise DocumentError(f"{what}: {e}.") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as e:
            raise DocumentError(f"{what}, fails: {type(e).__name__}: {e}.") from None
        pieces = []
        for mark in marks:
            piece, found, text = text.partition(mark)
            if not found or mark in text:
                raise DocumentError(f"{what}, does not hold what each says once and in order.")
            pieces.append(piece)
        closings = [*pieces[1:], *([text] if continues else [])]
        if not all(closing.startswith(END) for closing in closings):
            raise DocumentError(f"{what}, does not end a turn with {END}, as Mogao does.")
        return (*pieces, text)

    def __reduce__(self):  # for data workers: what Jinja compiles cannot be sent
        return ChatTemplate, (self.source, self.tokens)


def read_template(tokenizer_file: pathlib.Path) -> ChatTemplate:
    """The template that lies beside a tokenizer.json; plain ChatML where there is none.

    `chat_template.jinja` comes before the entry in tokenizer_config.json, as in transformers.

    Raises:
      ConfigError: a file that cannot be read, or is no template.
    """
    file, settings = (tokenizer_file.with_name(name) for name in (TEMPLATE, SETTINGS))
    told = _settings(settings) if settings.is_file() else {}
    source = told.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    place = settings
    if file.is_file():
        source, place = _text(file), file
    if source is None:
        return ChatTemplate()
    if not isinstance(source, str) or len(source) > MAX_TEMPLATE_CHARS:
        raise ConfigError(f"{str(place)!r}: the chat template must be text, of no more than 1 MB.")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    tokens = {name: _content(told.get(name)) for name in names}
    try:
        return ChatTemplate(source, tokens)
    except ConfigError as e:
        raise ConfigError(f"{str(place)!r}: {e}") from None


def _compile(source: str) -> Any:
    import jinja2  # not for those whose tokenizer has no template
    import jinja2.sandbox

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as e:
        raise ConfigError(f"this is not a chat template: {e}.") from None


def _settings(file: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(file))
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{str(file)!r} is not JSON: {e}.") from None
    return found if isinstance(found, dict) else {}


def _text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"{str(file)!r} cannot be read: {e}.") from None


def _content(token: Any) -> str:
    """A token's text: itself, or of the record that says more about it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
