"""`mogao profile`: one run on a tiny config, its sections, and its messages."""

from __future__ import annotations

import json
import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_system as tiny

from mogao_jax.cli import main
from mogao_jax.models.encoder_weights import save_weights
from mogao_jax.models.vae import FluxVae
from mogao_jax.models.vit import VisionTower
from mogao_jax.sharding.mesh import make_mesh
from mogao_jax.tools.profile import command, trace

CONFIG = """
from mogao_jax.config.convert import default_config, source

def get_config():
    c = default_config()
    c.name = "miniature"
    c.tokenizer.kind = "shapes"
    c.images.max_pixels, c.images.max_side = 1024, 48
    c.images.vit_resize = "match_vae_grid"
    c.data.sources = {t: source(kind="shapes", task=t) for t in ("edit", "t2i")}
    c.packing.und_tokens, c.packing.clean_tokens, c.packing.noised_tokens = 128, 24, 24
    c.packing.images, c.packing.vit_patches, c.packing.pool = 8, 96, 8
    c.model.num_layers, c.model.embed_dim, c.model.mlp_dim = 1, 16, 24
    c.model.num_heads, c.model.num_kv_heads, c.model.head_dim = 2, 1, 8
    c.vae.weights, c.vit.weights = "{folder}/vae.safetensors", "{folder}/vit.safetensors"
    c.vae.block_channels, c.vae.layers_per_block = (4, 4, 8, 8), 1
    c.vae.norm_groups, c.vae.scaling_factor, c.vae.shift_factor = 2, 1.0, 0.0
    c.vit.depth, c.vit.embed_dim, c.vit.num_heads, c.vit.mlp_dim = 1, 16, 2, 32
    c.train.global_batch_rows, c.train.grad_accum_steps = 2, 1
    return c
"""


def random_like(shapes):
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(shapes)["params"]
    return jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), shapes)


def write_config(folder: pathlib.Path) -> pathlib.Path:
    """CONFIG with random encoders beside it."""
    key, vae, vit = jax.random.key(0), tiny.CONFIG.vae, tiny.CONFIG.vit
    shapes = jax.eval_shape(FluxVae(vae).init, key, np.zeros((1, 48, 48, 3)), np.ones((1, 2), int))
    save_weights(folder / "vae.safetensors", random_like(shapes), vae)
    patches = np.zeros((1, 4, 588), np.uint8), np.zeros((1, 4, 2), int), np.ones((1, 4), int)
    shapes = jax.eval_shape(VisionTower(vit).init, key, *patches)
    save_weights(folder / "vit.safetensors", random_like(shapes), vit)
    path = folder / "config.py"
    path.write_text(CONFIG.replace("{folder}", str(folder)))
    return path


@pytest.mark.slow
def test_all_sections_are_printed_and_shares_add_up(tmp_path, capsys, monkeypatch):
    path = write_config(tmp_path)
    monkeypatch.setattr("mogao_jax.tools.profile.timing.square_side", lambda devices: 64)
    two = jax.devices()[:2]
    monkeypatch.setattr("mogao_jax.assembly.make_mesh", lambda c: make_mesh(c, two))
    out = tmp_path / "profile.json"
    argv = [f"--config={path}", "--steps", "2", "--json", str(out)]
    assert command.main(argv) == 0
    text = capsys.readouterr().out
    for title in (
        "Profile of 'miniature'", "Machine", "What one step works on", "What the machine can do",
        "The training step", "Useful arithmetic per step", "Parts of the step",
        "Inside the step, by kind of operation", "share of the yardstick", "tokens/s",
        "process peak", "making a batch", "host to device", "VAE, encoding", "ViT, encoding",
        "forward and backward", "optimizer and EMA",
    ):  # fmt: skip
        assert title in text, title

    record = json.loads(out.read_text())
    assert record["mesh"]["data"] == 2
    work, step = record["work"], record["step"]
    assert work["tokens"] == work["und"] + work["clean"] + work["noised"] > 0
    assert len(step["seconds"]) == 2 and step["best_seconds"] <= step["median_seconds"]
    assert step["tokens_per_second"] == pytest.approx(work["tokens"] / step["median_seconds"])
    use = record["utilization"]
    assert use["model_flops"] == pytest.approx(sum(record["model_flops"].values()))
    expected = use["model_flops"] / step["median_seconds"] / use["matmul_flops_per_second"]
    assert use["share"] == pytest.approx(expected)
    assert use["share_at_best_step"] >= use["share"]
    assert use["share_with_encoders"] > use["share"] > 0
    assert record["memory"]["process peak"] > 1e6

    operations = record["operations"]
    assert sum(operations["shares"].values()) == pytest.approx(1)
    assert set(operations["groups"]) == set(trace.GROUPS)
    expected_groups = set(trace.GROUPS) - {trace.OTHER}
    missing = {g for g in expected_groups if not operations["groups"][g]}
    assert not missing


def test_messages(tmp_path, capsys):
    assert main.main(["profile", "--config=absent.py"]) == 2
    assert "absent.py" in capsys.readouterr().err
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    argv = ["profile", f"--config={file}", "--json", str(tmp_path / "absent" / "x.json")]
    assert main.main(argv) == 2
    assert "--json" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([f"--config={file}", "--steps", "0"])
    assert "--steps" in capsys.readouterr().err
