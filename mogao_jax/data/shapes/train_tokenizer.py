"""Trains the tokenizer of the embedded world: python -m mogao_jax.data.shapes.train_tokenizer

A byte-level BPE, so that any text at all can be encoded, on the words of all six tasks. Of its
768 tokens 256 are bytes, 506 are merges, and the last six are the special tokens that the
pretrained tokenizers of the Qwen2.5 family also have. That many merges make one token of every
word of the world, which a small model learns sooner than words in pieces. A word and the space
before it are one piece, and no token reaches over the border of two pieces.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from mogao_jax.data.shapes.tasks import TASKS
from mogao_jax.data.shapes.world import ShapesSource
from mogao_jax.sequence.document import Text

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
VOCAB_SIZE = 768
TOKENIZER_PATH = pathlib.Path(__file__).with_name("tokenizer.json")
_CHAT = ("user\n", "assistant\n", "system\n", "\n")


def corpus(documents_per_task: int) -> Iterator[str]:
    """The text items of the training split, chat headers as the chat template writes them."""
    for task in TASKS:
        source = ShapesSource(task)
        for index in range(documents_per_task):
            for item in source[index].items:
                if isinstance(item, Text):
                    yield item.text
        yield from _CHAT * (documents_per_task // 10)


def train(documents_per_task: int = 4000, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """The tokenizer: bytes and merges first, then SPECIAL_TOKENS as the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(documents_per_task), trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    return tokenizer


def mean_tokens(tokenizer: Tokenizer, task: str, documents: int = 500) -> tuple[float, float]:
    """(tokens per text item, tokens per word) on the validation split of a task."""
    source = ShapesSource(task, split="validation")
    texts = [i.text for n in range(documents) for i in source[n].items if isinstance(i, Text)]
    tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    return tokens / len(texts), tokens / sum(len(text.split()) for text in texts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=TOKENIZER_PATH)
    parser.add_argument("--documents", type=int, default=4000, help="training documents per task")
    args = parser.parse_args(argv)
    tokenizer = train(args.documents)
    tokenizer.save(str(args.output))
    print(f"{args.output}: {tokenizer.get_vocab_size()} tokens")
    for task in TASKS:
        per_item, per_word = mean_tokens(tokenizer, task)
        print(f"{task:6s} {per_item:5.1f} tokens per text item, {per_word:.2f} per word")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
