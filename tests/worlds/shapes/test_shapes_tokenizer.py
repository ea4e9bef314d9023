import json

import pytest

from mogao_jax.tokenizer import SPECIAL_TOKENS
from mogao_jax.worlds.shapes.tasks import TASKS
from mogao_jax.worlds.shapes.train_tokenizer import (
    TOKENIZER_PATH,
    main,
    mean_tokens,
    train,
)
from mogao_jax.worlds.shapes.world import ShapesSource

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.Tokenizer.from_file(str(TOKENIZER_PATH))


def test_vocabulary(tokenizer):
    assert tokenizer.get_vocab_size() == 768
    assert [tokenizer.token_to_id(t) for t in SPECIAL_TOKENS.values()] == list(range(762, 768))
    assert TOKENIZER_PATH.stat().st_size < 40_000


def test_any_text_comes_back(tokenizer):
    odd = ["", " ", "Ünïcödé ✓ 日本語 🙂", "a\n\n\tb  c", "".join(map(chr, range(1, 300)))]
    own = [
        item.text
        for task in TASKS
        for index in range(50)
        for item in ShapesSource(task, split="validation")[index].items
        if hasattr(item, "text")
    ]
    for text in odd + own:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert all(0 <= i < 762 for i in ids)


def test_words_of_the_world_are_single_tokens(tokenizer):
    words = "red green blue yellow purple orange cyan black circle square triangle cross star ring"
    for word in f"{words} left right background and the is".split():
        assert len(tokenizer.encode(" " + word).ids) == 1, word
    numbers = "one two three four above below beneath under over"
    for word in f"{numbers} white gray small large".split():
        assert len(tokenizer.encode(" " + word).ids) == 1, word
    # What an answer begins with has no space before it.
    for start in f"{words} user assistant yes no two three left right above below".split():
        assert len(tokenizer.encode(start).ids) == 1, start
    for task in TASKS:
        # Per word, punctuation included, of which statements have much: "circles: two."
        assert mean_tokens(tokenizer, task, 100)[1] < (1.45 if task == "state" else 1.3)


@pytest.mark.slow
def test_the_shipped_tokenizer_is_what_its_command_makes():
    assert json.loads(train().to_str()) == json.loads(TOKENIZER_PATH.read_text())


def test_training_is_deterministic_and_written_as_json(tmp_path, capsys):
    first, second = train(60), train(60)
    assert first.to_str() == second.to_str()
    assert main(["--output", str(tmp_path / "tokenizer.json"), "--documents", "60"]) == 0
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == json.loads(first.to_str())
    assert "t2i" in capsys.readouterr().out
