"""Training a tokenizer on one's own documents: byte-level BPE, by the `tokenizers` library.

For models trained from scratch. Words in one piece are learned sooner by a small model than
bytes, and documents are several times shorter; a pretrained language model needs its own.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mogao_jax.atomic import write_file
from mogao_jax.data.sources import Source
from mogao_jax.errors import ConfigError, DataError, DocumentError
from mogao_jax.sequence.document import Text
from mogao_jax.tokenizer import SPECIAL_TOKENS

NUM_BYTES = 256
SMALLEST = NUM_BYTES + len(SPECIAL_TOKENS)  # no merges at all
# What the chat template puts around texts (ChatML: role, line break).
CHAT_HEADERS = ("user\n", "assistant\n", "system\n", "\n")

logger = logging.getLogger(__name__)


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE: any text at all can be encoded, and comes back byte for byte.

    A word and the space before it are one piece, and no token reaches over the border of two
    pieces (GPT-2's rule). Ids: bytes and merges first, then the control tokens of SPECIAL_TOKENS.

    Args:
      texts: what merges are counted on.
      vocab_size: number of tokens; there are fewer where the texts have no more to merge.
    Raises:
      ConfigError: `vocab_size` has no room for the bytes and the control tokens.
    """
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"a vocabulary of {vocab_size} tokens is too small: {NUM_BYTES} bytes and "
            f"{len(SPECIAL_TOKENS)} control tokens need {SMALLEST}."
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    special = [AddedToken(t, normalized=False) for t in SPECIAL_TOKENS.values()]
    tokenizer.add_special_tokens(special)
    return tokenizer


def texts_of(source: Source) -> Iterator[str]:
    """All texts of a source's documents; records that cannot be read are skipped with a warning.

    Raises:
      DataError: not one of the records has a text.
    """
    found = False
    for index in range(len(source)):
        try:
            document = source[index]
        except DocumentError as e:
            logger.warning("skipped: %s", e)
            continue
        for item in document.items:
            if isinstance(item, Text) and item.text:
                found = True
                yield item.text
    if not found:
        raise DataError("no document has a text to learn a tokenizer from.")


def save(tokenizer: tokenizers.Tokenizer, path: pathlib.Path) -> None:
    """Writes tokenizer.json, whole or not at all.

    Raises:
      EnvironmentProblem: it cannot be written there.
    """
    write_file(path, tokenizer.to_str(pretty=True))


def tokens_per_word(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> float:
    """Mean over the texts' words, punctuation counted with its word."""
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    return tokens / max(1, sum(len(text.split()) for text in texts))
