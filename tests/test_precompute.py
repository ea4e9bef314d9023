"""Images encoded beforehand: a batch with them trains as a batch that is encoded in the step."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mogao_jax.cli.main import main
from mogao_jax.config.convert import default_config, from_dict, source
from mogao_jax.data.encoded import open_encoded
from mogao_jax.data.pipeline import make_train_iterator, make_validation_batches
from mogao_jax.errors import ConfigError, DataError, EnvironmentProblem
from mogao_jax.models.encoding import encode_batch
from mogao_jax.models.modules import load_modules
from mogao_jax.precompute import check_encoded, encode_sources
from mogao_jax.tokenizer import ByteTokenizer

SIZES = ((32, 48), (48, 32), (64, 64), (16, 16))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty documents: an image, words, another image; one of them cannot be read."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(20):
        for name in "ab":
            height, width = SIZES[rng.integers(len(SIZES))]
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}{name}.png")
        items = [
            {"type": "image", "path": f"{i}a.png", "role": "user"},
            {"type": "text", "text": "more", "role": "user"},
            {"type": "image", "path": f"{i}b.png" if i else "gone.png", "role": "assistant"},
        ]
        lines.append(json.dumps({"id": str(i), "items": items}))
    (folder / "d.jsonl").write_text("\n".join(lines))
    return folder


def config_of(data, *, sample_posterior):
    c = default_config()
    c.tokenizer.kind = "byte"
    c.images.max_pixels, c.images.max_side = 64 * 64, 64
    c.images.vit_resize = "match_vae_grid"
    c.data.sources = {"d": source(kind="documents", path=str(data / "d.jsonl"))}
    c.data.validation_documents = 4
    c.packing.und_tokens, c.packing.images = 256, 8
    c.packing.clean_tokens = c.packing.noised_tokens = 64
    c.packing.pool = 8
    c.vae.weights = c.vit.weights = "embedded"
    c.vae.block_channels, c.vae.layers_per_block, c.vae.norm_groups = (8, 16, 32, 64), 1, 4
    c.vae.scaling_factor, c.vae.shift_factor = 1.5948, 0.0201
    c.vae.sample_posterior = sample_posterior
    c.vit.depth, c.vit.embed_dim, c.vit.num_heads, c.vit.mlp_dim = 4, 96, 4, 384
    c.model.num_layers, c.model.embed_dim, c.model.mlp_dim = 1, 32, 32
    c.model.num_heads = c.model.num_kv_heads = 2
    c.model.head_dim = 16
    c.train.global_batch_rows = 2
    return from_dict(c.to_dict())


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_the_same_latents_and_features(data, tmp_path, sample_posterior):
    config = config_of(data, sample_posterior=sample_posterior)
    tokenizer = ByteTokenizer()
    modules, encoders = load_modules(config, tokenizer.vocab_size)
    out = tmp_path / "encoded"
    counts = encode_sources(modules, encoders, out, log=lambda line: None)
    assert counts.images == 38 and counts.skipped == 1
    check_encoded(open_encoded(str(out)), modules, encoders)

    cached = dataclasses.replace(config, data=dataclasses.replace(config.data, encoded=str(out)))
    plain_set, cached_set = (make_validation_batches(c, tokenizer) for c in (config, cached))
    pairs = list(zip(plain_set, cached_set, strict=True))
    plain_rows, cached_rows = (
        make_train_iterator(c, tokenizer=tokenizer) for c in (config, cached)
    )
    for _ in range(2):
        both = next(plain_rows), next(cached_rows)
        pairs.append(tuple(jax.tree.map(lambda x: x[0], b) for b in both))
    plain_rows.close()
    cached_rows.close()
    encode = jax.jit(lambda batch, posterior: encode_batch(modules, encoders, batch, posterior))
    for plain, ready in pairs:
        assert ready.images.pixels.size == ready.vit.pixels.size == 0
        for a, b in zip(plain.noised, ready.noised, strict=True):
            jax.tree.map(np.testing.assert_array_equal, a, b)
        posterior = jax.random.normal(jax.random.key(1), (*plain.images.size.shape[:2], 8, 8, 16))
        latents, features = encode(plain, posterior)
        latents_2, features_2 = encode(ready, posterior)
        np.testing.assert_allclose(latents, latents_2, atol=2e-5)
        real = plain.vit.segment > 0
        np.testing.assert_allclose(features[real], features_2[real], atol=2e-4)
        assert np.abs(features[real]).max() > 0.1 and np.abs(latents).max() > 0.1


def test_half_precision_is_half_as_large(data, tmp_path, capsys):
    config = config_of(data, sample_posterior=False)
    modules, encoders = load_modules(config, ByteTokenizer().vocab_size)
    sizes = [
        encode_sources(modules, encoders, tmp_path / d, dtype=d, log=lambda line: None).bytes
        for d in ("float32", "float16")
    ]
    assert 0.45 < sizes[1] / sizes[0] < 0.55
    with pytest.raises(EnvironmentProblem, match="exists already"):
        encode_sources(modules, encoders, tmp_path / "float32")


def test_what_does_not_fit_is_said(data, tmp_path):
    config = config_of(data, sample_posterior=False)
    modules, encoders = load_modules(config, ByteTokenizer().vocab_size)
    out = tmp_path / "encoded"
    encode_sources(modules, encoders, out, log=lambda line: None)

    other = encoders._replace(vae=jax.tree.map(lambda x: x * 1.01, encoders.vae))
    with pytest.raises(ConfigError, match=r"another VAE \(other weights_checksum\)"):
        check_encoded(open_encoded(str(out)), modules, other)

    changed = dataclasses.replace(config.data, encoded=str(out))
    images = dataclasses.replace(config.images, max_pixels=32 * 32)
    config_2 = dataclasses.replace(config, data=changed, images=images)
    with pytest.raises(DataError, match="document .* is not in .*mogao data encode"):
        make_validation_batches(config_2, ByteTokenizer())

    for path in (tmp_path / "nothing", data):
        with pytest.raises(DataError, match="mogao data encode"):
            open_encoded(str(path))
    (out / "vae.values.npy").write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(DataError, match="vae"):
        open_encoded(str(out))


def test_an_endless_source_is_refused(capsys, tmp_path):
    argv = ["data", "encode", "--config=configs/quickstart.py", "--out", str(tmp_path / "e")]
    assert main(argv) == 2
    assert "images have no end" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*argv, "--dtype", "int8"]) == 2
    assert "float32 or float16" in capsys.readouterr().err
