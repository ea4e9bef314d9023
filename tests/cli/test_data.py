"""`mogao data`: every action runs, and flags that are wrong are said to be."""

import json

import pytest

from mogao_jax.cli import data
from mogao_jax.cli.main import main
from mogao_jax.config.schema import TokenizerConfig
from mogao_jax.tokenizer import load_tokenizer

CONFIG = """
from mogao_jax.config import default_config, source

def get_config():
    c = default_config()
    c.images.max_pixels = 32 * 32
    c.images.max_side = 32
    c.data.sources.mine = source(kind="documents", path="PATH")
    return c
"""


@pytest.fixture
def config(tmp_path):
    records = [{"items": [{"type": "text", "text": f"hello {i}"}]} for i in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join([*map(json.dumps, records), "{"] * 2))
    (tmp_path / "c.py").write_text(CONFIG.replace("PATH", str(tmp_path / "d.jsonl")))
    return f"--config={tmp_path / 'c.py'}"


def test_inspect(config, capsys):
    assert main(["data", "inspect", config, "--num", "17"]) == 0
    out = capsys.readouterr().out
    assert out.count("--- mine, record") == 17
    assert "'h' -> 'e'  weight 1" in out
    assert "cannot be used: mine: d.jsonl:9: not valid JSON" in out


def test_fill_and_budgets(config, capsys):
    assert main(["data", "fill", config, "--rows", "3"]) == 0
    out = capsys.readouterr().out
    assert "und" in out and "documents/s" in out and "skipped: " in out
    narrow = ["--config.packing.und_tokens=7", "--num", "20", "--und-tokens=64"]
    assert main(["data", "budgets", config, *narrow]) == 0
    out = capsys.readouterr().out
    assert "c.packing.und_tokens = 64" in out and "are over the config's budgets" in out


def test_tokenizer(config, capsys, caplog, tmp_path):
    out = tmp_path / "made" / "tokenizer.json"
    flags = ["--documents", str(tmp_path / "d.jsonl"), "--vocab", "300", "--out", str(out)]
    assert main(["data", "tokenizer", *flags]) == 0
    assert "tokens per word" in capsys.readouterr().out
    assert "d.jsonl:9: not valid JSON" in caplog.text
    tokenizer = load_tokenizer(TokenizerConfig(kind="file", path=str(out)))
    assert len(tokenizer.encode("hello")) == len(tokenizer.encode("user")) == 1
    assert tokenizer.decode(tokenizer.encode("say hello <|im_end|> ✓")) == "say hello <|im_end|> ✓"
    assert not set(tokenizer.encode("<|im_end|>")) & tokenizer.special_ids
    assert main(["data", "fill", config, f"--config.tokenizer.path={out}",
                 "--config.tokenizer.kind=file", "--rows", "1"]) == 0  # fmt: skip
    assert main(["data", "tokenizer", *flags[:3], "261", *flags[4:]]) == 2
    assert "bytes and 6 control tokens need 262" in capsys.readouterr().err
    (tmp_path / "e.jsonl").write_text('{"items": []}\n')
    assert main(["data", "tokenizer", "--documents", str(tmp_path / "e.jsonl"), *flags[2:]]) == 2
    assert "no document has a text" in capsys.readouterr().err


def test_wrong_flags(config, capsys, tmp_path):
    for argv, message in [
        (["data", "inspct"], "no action 'inspct'"),
        (
            ["data", "fill", config, "--rows", "0"],
            "--rows: must be a whole number above 0, got '0'",
        ),
        (["data", "emoji", "--zip", "x"], "--out"),
        (["data", "emoji", "--zip", str(tmp_path / "x"), "--out", "y"], "nothing is at"),
        (["data", "fill"], "--config=FILE is required"),
    ]:
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    assert data.main(["--help"]) == 0
    assert "budgets" in capsys.readouterr().out
