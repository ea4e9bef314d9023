"""How a model begins: what comes from the LLM, what is a copy, and what training would draw."""

from __future__ import annotations

import dataclasses

import flax.traverse_util
import jax
import numpy as np
import pytest
import tiny_files as files

from mogao_jax.errors import CheckpointError, ConfigError
from mogao_jax.models.modules import init_params, make_model
from mogao_jax.porting import from_hf, params
from mogao_jax.porting.tensor_sources import InMemory
from mogao_jax.sharding import rules

KEY = jax.random.key(3)


def config(model=None, **porting):
    changed = dataclasses.replace(files.MODEL, num_layers=2, **(model or {}))
    options = dataclasses.replace(files.CONFIG.porting, **porting)
    return dataclasses.replace(files.CONFIG, model=changed, porting=options)


def llm(cfg, vocab=files.VOCAB):
    return InMemory(files.values(files.qwen2_shapes(cfg.model, vocab)))


def flat(tree) -> dict:
    return {k: np.asarray(x) for k, x in flax.traverse_util.flatten_dict(tree, sep=".").items()}


@pytest.mark.parametrize("scan", [False, True])
def test_what_no_file_holds_is_what_training_draws(scan, monkeypatch):
    cfg = config({"scan_layers": scan})
    model = make_model(cfg, files.VOCAB)
    drawn = flat(rules.unbox(jax.jit(lambda key: init_params(cfg, model, key))(KEY)))
    built = flat(from_hf.build_mogao(llm(cfg), cfg, KEY))
    assert built.keys() == drawn.keys()
    for name, value in built.items():
        from_llm = (
            ".und." in name or ".gen." in name or name in ("token_embedding", "final_norm.scale")
        )
        assert from_llm != np.array_equal(value, drawn[name]), name
    if scan:
        # The way of large arrays: constants are recognised by a single layer.
        monkeypatch.setattr(params, "LARGE_BYTES", 16_000)
        again = flat(from_hf.build_mogao(llm(cfg), cfg, KEY))
        for name, value in built.items():
            np.testing.assert_array_equal(value, again[name], name)


def test_an_llm_keeps_its_rotary_embedding():
    cfg = config()
    other = dataclasses.replace(cfg.layout, text_positions="t")
    with pytest.raises(ConfigError, match="layout.text_positions is 't'.*must be 'thw'"):
        from_hf.build_mogao(llm(cfg), dataclasses.replace(cfg, layout=other), KEY)


def test_the_gen_branch_is_a_copy_and_adaln_is_zero():
    built = flat(from_hf.build_mogao(llm(config()), config(), KEY))
    for name, value in built.items():
        if ".gen." in name:
            np.testing.assert_array_equal(value, built[name.replace(".gen.", ".und.")], name)
        if "adaln" in name or name.startswith("velocity_head.out"):
            assert not value.any(), name


def test_variations():
    cfg = config(gen_branch="fresh", adaln="open", velocity_head="fresh")
    built = flat(from_hf.build_mogao(llm(cfg), cfg, KEY))
    plain = flat(from_hf.build_mogao(llm(config()), config(), KEY))
    drawn = flat(from_hf.build_mogao(None, config(), KEY))
    np.testing.assert_array_equal(built["layers_1.gen.up.kernel"], drawn["layers_1.gen.up.kernel"])
    np.testing.assert_array_equal(built["layers_1.und.up.kernel"], plain["layers_1.und.up.kernel"])
    # Shift, scale, gate of attention; shift, scale, gate of the FFN.
    six = np.split(built["layers_0.adaln.bias"], 6)
    assert [set(part) for part in six] == [{0.0}, {0.0}, {1.0}, {0.0}, {0.0}, {1.0}]
    assert not built["final_adaln.bias"].any() and not built["layers_0.adaln.kernel"].any()
    assert built["velocity_head.out.kernel"].std() > 0.05
    assert not built["velocity_head.out.bias"].any()


def test_a_larger_vocabulary():
    cfg = config({"vocab_size": files.VOCAB + 9})
    with pytest.raises(
        CheckpointError, match=r"has shape \[300, 32\], the config wants \[309, 32\]"
    ):
        from_hf.build_mogao(llm(cfg), cfg, KEY)
    cfg = config({"vocab_size": files.VOCAB + 9}, vocabulary="extend")
    source = llm(cfg)
    built = flat(from_hf.build_mogao(source, cfg, KEY))["token_embedding"]
    np.testing.assert_array_equal(built[: files.VOCAB], source.read("model.embed_tokens.weight"))
    new = built[files.VOCAB :]
    assert new.shape == (9, 32) and 0.8 < new.std() < 1.2  # the file's rows have deviation 1
    cfg = config({"vocab_size": files.VOCAB - 1}, vocabulary="extend")
    with pytest.raises(CheckpointError, match=r"has shape \[300, 32\]"):
        from_hf.build_mogao(source, cfg, KEY)


def test_shared_weights_have_one_branch():
    cfg = config({"fusion": "shared"})
    built = flat(from_hf.build_mogao(llm(cfg), cfg, KEY))
    assert not any(".gen." in name for name in built)


def test_a_headless_model_is_read_as_well():
    """Qwen2Model saves the same tensors without "model."."""
    cfg = config()
    values = files.values(files.qwen2_shapes(cfg.model))
    bare = InMemory({key.removeprefix("model."): value for key, value in values.items()})
    ours, theirs = (from_hf.load_llm(source, cfg) for source in (InMemory(values), bare))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
