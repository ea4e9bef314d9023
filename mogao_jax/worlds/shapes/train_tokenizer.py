"""Trains the tokenizer of the embedded world: python -m mogao_jax.worlds.shapes.train_tokenizer

A byte-level BPE (data/bpe.py) on the words of six tasks. Of its 768 tokens 256 are bytes, 506
are merges, and the last six are the control tokens. That many merges make one token of every
word of the world, which a small model learns sooner than words in pieces.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator

from tokenizers import Tokenizer

from mogao_jax.data.bpe import CHAT_HEADERS, save, tokens_per_word, train_bpe
from mogao_jax.sequence.document import Text
from mogao_jax.worlds.shapes.tasks import TASKS
from mogao_jax.worlds.shapes.world import ShapesSource

VOCAB_SIZE = 768
# The tasks it was made from; those that came later write the same words, and checkpoints know it.
CORPUS_TASKS = ("text", "qa", "t2i", "edit", "story", "clip")
TOKENIZER_PATH = pathlib.Path(__file__).with_name("tokenizer.json")


def corpus(documents_per_task: int) -> Iterator[str]:
    """The text items of the training split, chat headers as the chat template writes them."""
    for task in CORPUS_TASKS:
        yield from _texts(ShapesSource(task), documents_per_task)
        yield from CHAT_HEADERS * (documents_per_task // 10)


def _texts(source: ShapesSource, documents: int) -> list[str]:
    items = (item for index in range(documents) for item in source[index].items)
    return [item.text for item in items if isinstance(item, Text)]


def train(documents_per_task: int = 4000, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """The tokenizer of the embedded world."""
    return train_bpe(corpus(documents_per_task), vocab_size)


def mean_tokens(tokenizer: Tokenizer, task: str, documents: int = 500) -> tuple[float, float]:
    """(tokens per text item, tokens per word) on the validation split of a task."""
    texts = _texts(ShapesSource(task, split="validation"), documents)
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    return tokens / len(texts), tokens_per_word(tokenizer, texts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=TOKENIZER_PATH)
    parser.add_argument("--documents", type=int, default=4000, help="training documents per task")
    args = parser.parse_args(argv)
    tokenizer = train(args.documents)
    save(tokenizer, args.output)
    print(f"{args.output}: {tokenizer.get_vocab_size()} tokens")
    for task in TASKS:
        per_item, per_word = mean_tokens(tokenizer, task)
        print(f"{task:6s} {per_item:5.1f} tokens per text item, {per_word:.2f} per word")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
