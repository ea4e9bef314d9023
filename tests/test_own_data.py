"""`mogao train --data PLACE`: a recipe for one's own documents, chosen, written, and trained."""

from __future__ import annotations

import json
import pathlib

import PIL.Image
import pytest

from mogao_jax.cli.main import main
from mogao_jax.config import load_config, to_dict
from mogao_jax.errors import ConfigError, DataError
from mogao_jax.own_data import RECIPE, as_python, choose, recipe_file

COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 220)}


def captioned(folder: pathlib.Path, height: int = 32, width: int = 48) -> pathlib.Path:
    folder.mkdir()
    for i in range(24):
        name = list(COLORS)[i % 3]
        PIL.Image.new("RGB", (width, height), COLORS[name]).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {name} card, number {i}")
    return folder


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    return captioned(tmp_path / "images")


def test_sizes_follow_from_the_data(images, tmp_path):
    config, notes = choose(str(images), tmp_path / "run")
    assert config.images.max_pixels == 32 * 48 and config.images.max_side == 48
    assert config.packing.noised_tokens % (4 * 6) in range(24)  # 4 copies of 2 x 3 tokens
    assert 4 * 6 <= config.packing.noised_tokens <= 2 * 10 * 4 * 6
    assert config.data.sources["own"].path == str(images)
    assert any("learned from" in note for note in notes)
    large, notes = choose(str(captioned(tmp_path / "large", 300, 200)), tmp_path / "large_run")
    assert large.images.max_pixels == 64 * 64
    assert any("need an accelerator" in note for note in notes)


def test_text_alone(tmp_path):
    file = tmp_path / "texts.jsonl"
    records = [{"items": [{"type": "text", "text": f"line {i} of a poem"}]} for i in range(40)]
    file.write_text("\n".join(map(json.dumps, records)))
    config, notes = choose(str(file), tmp_path / "run")
    assert "images: none" in notes
    assert config.packing.und_tokens >= 16


@pytest.mark.parametrize("init", ["", "demo"])
def test_the_file_is_the_config(images, tmp_path, init):
    recipe = choose(str(images), tmp_path / "run", init)
    file = tmp_path / "as_written.py"
    file.write_text(as_python(recipe))
    assert to_dict(load_config(file)) == to_dict(recipe.config)
    compile(file.read_text(), str(file), "exec")


def test_a_start_keeps_what_its_weights_need(images, tmp_path):
    config, _ = choose(str(images), tmp_path / "run", "demo")
    assert config.train.init_from == "demo" and config.tokenizer.kind == "shapes"
    assert (config.model.embed_dim, config.model.num_layers) == (192, 6)
    assert config.images.max_pixels == 64 * 48  # the demo's


def test_a_run_goes_on_with_its_own_recipe(images, tmp_path):
    file, _ = recipe_file(str(images), tmp_path / "run")
    changed = file.read_text().replace("c.train.max_minutes = 10.0", "c.train.max_minutes = 3.0")
    file.write_text(changed)
    again, notes = recipe_file(str(images), tmp_path / "run")
    assert again == file and file.read_text() == changed and "goes on" in notes[0]
    with pytest.raises(ConfigError, match="was made with --data .*another --workdir"):
        recipe_file(str(captioned(tmp_path / "others")), tmp_path / "run")
    with pytest.raises(ConfigError, match="was made with --init left out, not demo"):
        recipe_file(str(images), tmp_path / "run", "demo")


def test_what_cannot_be_trained_on_is_refused(images, tmp_path):
    for caption in images.glob("*.txt"):
        caption.unlink()
    with pytest.raises(DataError, match=r"no documents \(found: 24 \.png\).*captions in \.txt"):
        recipe_file(str(images), tmp_path / "run")
    assert not (tmp_path / "run" / RECIPE).exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "x", "--config=quickstart"], "leave one out"),
        (["--init", "demo", "--config=quickstart"], "--init needs --data"),
        (["--data", "/nowhere"], "nothing is at '/nowhere'"),
        (["--data", "IMAGES", "--init", "dmo"], "there is no checkpoint 'dmo'"),
        (["--data", "IMAGES", "--speed", "9"], "unknown: --speed 9"),
        ([], "--config=FILE is required"),
    ],
)
def test_flags_that_cannot_be(capsys, images, tmp_path, flags, says):
    given = [str(images) if flag == "IMAGES" else flag for flag in flags]
    assert main(["train", "--workdir", str(tmp_path / "run"), *given]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_is_trained_and_drawn_from(images, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["train", "--data", str(images), "--workdir", str(run)]
    short = ["--config.train.num_steps=2", "--config.optimizer.warmup_steps=1"]
    small = ["--config.model.num_layers=1", "--config.train.global_batch_rows=8"]
    assert main([*command, *short, *small]) == 0
    said = capsys.readouterr().err
    assert "Recipe for your data:" in said and "Done at step 2" in said
    out = tmp_path / "samples"
    draw = ["sample", "--checkpoint", str(run), "--task", "t2i", "--steps", "2", "--out", str(out)]
    assert main([*draw, "a red card"]) == 0
    assert (out / "001-1.png").is_file()
