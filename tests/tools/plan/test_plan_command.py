"""`mogao plan`: reports and refusals, without a compiler."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from mogao_jax.cli import main

CONFIGS = pathlib.Path(__file__).resolve().parents[3] / "configs"
CONFIG = """
from mogao_jax.config.convert import default_config, source

def get_config():
    c = default_config()
    c.name = "miniature"
    c.tokenizer.kind, c.tokenizer.path = "file", "nowhere"
    c.images.max_pixels, c.images.max_side = 1024, 48
    c.images.vit_resize = "match_vae_grid"
    c.data.sources = {"pairs": source(kind="documents", path="nowhere", task="t2i")}
    c.packing.und_tokens, c.packing.clean_tokens, c.packing.noised_tokens = 768, 24, 24
    c.packing.images, c.packing.vit_patches, c.packing.pool = 8, 96, 8
    c.model.num_layers, c.model.embed_dim, c.model.mlp_dim = 1, 16, 24
    c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
    c.model.vocab_size = 300
    c.vae.weights, c.vit.weights = "nowhere", "nowhere"
    c.vae.block_channels, c.vae.layers_per_block = (4, 4, 8, 8), 1
    c.vae.norm_groups, c.vae.scaling_factor, c.vae.shift_factor = 2, 1.0, 0.0
    c.vit.depth, c.vit.embed_dim, c.vit.num_heads, c.vit.mlp_dim = 1, 16, 2, 32
    c.mesh.data, c.mesh.fsdp = 1, 8
    c.train.global_batch_rows = 8
    return c
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "miniature.py"
    path.write_text(CONFIG)
    return path


def run(capsys, *argv):
    status = main.main(["plan", *map(str, argv)])
    return status, *capsys.readouterr()


def test_a_plan_needs_no_files(recipe, tmp_path, capsys):
    status, out, _ = run(
        capsys, f"--config={recipe}", "--topology", "8xH100", "--tokens", "1e9",
        "--json", tmp_path / "plan.json",
    )  # fmt: skip
    assert status == 0, out
    for words in ("Plan of 'miniature' on 8xH100", "fsdp=8", "1e+09 tokens", "limited by"):
        assert words in out
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["estimate"]["tokens"] == 1e9 and record["mesh"]["fsdp"] == 8


def test_a_search_names_the_flags_of_its_best(recipe, capsys):
    status, out, _ = run(capsys, f"--config={recipe}", "--topology", "8xH100", "--search")
    assert status == 0
    assert "The best: --config.mesh.data=" in out and "tokens/s" in out.splitlines()[0]
    assert "--config.mesh.num_slices=1 " in out


def test_a_search_that_finds_nothing_that_compiles_and_fits_fails(recipe, capsys, monkeypatch):
    from mogao_jax.tools.plan import search

    by_formulas = search.search
    monkeypatch.setattr(search, "search", lambda *_, **__: by_formulas(*_, compile_best=0))
    status, out, _ = run(capsys, f"--config={recipe}", "--topology", "v5p:2x2x2", "--search")
    assert status == 1
    assert "No combination that was compiled fits v5p:2x2x2" in out and "The best" not in out


def test_a_recipe_whose_weights_lie_along_a_torus_is_planned_over_slices(tmp_path, capsys):
    """What training would take: weights inside a slice, sums of gradients alone between them."""
    file = tmp_path / "plan.json"
    status, out, err = run(
        capsys, f"--config={CONFIGS / 'mogao_7b_stage3.py'}:v5p-64", "--topology", "v5p:4x4x4",
        "--num-slices", 2, "--no-compile", "--json", file,
    )  # fmt: skip
    assert status == 0, err
    record = json.loads(file.read_text())
    assert record["mesh"] == {"data": 2, "fsdp": 64, "tensor": 1, "context": 1}
    assert record["rows_per_step"] == 2 * 128
    sent = {row["axes"]: row["sent_bytes"] for row in record["sent"]}
    network = 6.25e9 * 0.8
    assert set(sent) == {"data", "fsdp"}
    assert record["roofline"]["network"] == pytest.approx(sent["data"] / network)


def test_sampling_on_a_gpu_is_planned_by_formulas(recipe, capsys):
    status, out, _ = run(
        capsys, f"--config={recipe}", "--topology", "H200", "--what", "sample", "--images", 2
    )
    assert status == 0
    assert "2, of 4 tokens, in 3 contexts each" in out and "images/s" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--topology", "v5p-4x4x4"], "Did you mean 'v5p:4x4x4'"),
        (["--topology", "8xH100", "--tokens", "0"], "--tokens is 0.0"),
        (["--topology", "8xH100", "--num-slices", "0"], "--num-slices is 0"),
        (["--topology", "8xH100", "--num-slices", "2"], "name all GPUs.*16xH100"),
        (["--topology", "8xH100", "--search", "--compile", "-1"], "--compile is -1"),
        (["--topology", "8xH100", "--config.optimizer.warmup_steps=5000"], "warmup_steps"),
        ([], "required: --topology"),
        (["--topology", "8xH100", "--config.mesh.tensor=3"], "does not fit the 8 devices"),
        (["--topology", "8xH100", "--config.mesh.fsdp=2", "--config.mesh.tensor=4",
          "--config.train.global_batch_rows=8"], r"mesh.tensor \(4\).*mesh.tensor=2"),
        (["--topology", "8xH100", "--config.train.global_batch_rows=12"], "such as 8 or 16"),
        (["--topology", "8xH100", "--config.model.vocab_size=0"], "vocab_size is 0"),
    ],
)  # fmt: skip
def test_refusals(recipe, capsys, argv, message):
    status, _, err = run(capsys, f"--config={recipe}", *argv)
    assert status == 2
    assert re.search(message, err), err


def test_recipes_of_the_7b_name_their_machines(capsys):
    path = CONFIGS / "mogao_7b_stage3.py"
    status, _, err = run(capsys, f"--config={path}:v7x-9", "--topology", "8xH100")
    assert status == 2 and "there is no machine 'v7x-9'; there are: v5e-256, v5p-64" in err
    quick = CONFIGS / "quickstart.py"
    status, _, err = run(capsys, f"--config={quick}:big", "--topology", "8xH100")
    assert status == 2 and "takes no argument; leave out ':big'" in err
