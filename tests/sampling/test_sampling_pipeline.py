"""Loading by any path, and the stream of a generation: order, errors, and being left alone."""

from __future__ import annotations

import dataclasses
import gc
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
import tiny_checkpoint as checkpoint
from fake_sampler import FakeSampler

import mogao_jax
from mogao_jax.errors import CheckpointError, ConfigError, DocumentError, RequestError
from mogao_jax.models.encoder_weights import file_digests
from mogao_jax.registry import CHECKPOINTS
from mogao_jax.sampling import pipeline as pipeline_lib
from mogao_jax.sampling.loading import Model, load_model, open_checkpoint
from mogao_jax.sampling.options import SamplingOptions
from mogao_jax.sampling.requests import Request
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return checkpoint.write_file(folder / "tiny.safetensors", dtype="float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint.write_run(tmp_path_factory.mktemp("runs") / "run")


# ---------------------------------------------------------------------------------------- loading


def test_all_ways_to_name_a_checkpoint(file, run):
    cases = [(file, "best", 0, "ema"), (run, "best", 1, "ema"), (run, "raw", 0, "raw"),
             (run / "checkpoints" / str(checkpoint.STEP), "ema", 1, "ema")]  # fmt: skip
    for path, weights, seed, which in cases:
        model = load_model(path, weights=weights)
        jax.tree.map(np.testing.assert_array_equal, model.params, checkpoint.params(seed))
        assert model.config == checkpoint.config() and model.step == checkpoint.STEP
        assert model.weights == which and model.name == str(path)
        assert isinstance(model.tokenizer, ByteTokenizer)
        assert model.modules.vit is not None and model.encoders.vae


def test_the_demo_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(CHECKPOINTS, "get", lambda name: tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="bash launch/demo.sh"):
        mogao_jax.load()


def test_paths_that_hold_no_checkpoint(tmp_path, file):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CheckpointError, match=str(path)):
            open_checkpoint(path)
    with pytest.raises(CheckpointError, match="ema"):
        open_checkpoint(file, weights="raw")
    with pytest.raises(ConfigError, match="best, ema, raw"):
        open_checkpoint(file, weights="worst")


def test_another_tokenizer(tmp_path, file):
    shapes = dataclasses.replace(checkpoint.config().tokenizer, kind="shapes")
    config = dataclasses.replace(checkpoint.config(), tokenizer=shapes)
    path = checkpoint.write_file(tmp_path / "other.safetensors", config=config)
    with pytest.raises(CheckpointError, match="another tokenizer.*768 tokens"):
        open_checkpoint(path)
    with pytest.raises(ConfigError, match="nowhere"):
        open_checkpoint(file, tokenizer=tmp_path / "nowhere")


def test_encoders_it_was_not_trained_with(tmp_path, caplog):
    """Same shapes, other weights: nothing would fail, and everything it sees would be wrong."""
    now = file_digests(checkpoint.config())
    other = {**now, "vit": "0123456789abcdef"}
    places = (
        checkpoint.write_file(tmp_path / "other.safetensors", encoders=other),
        checkpoint.write_run(tmp_path / "run", encoders=other),
    )
    for place in places:
        with pytest.raises(CheckpointError, match="another vision tower .0123456789abcdef then"):
            open_checkpoint(place)
        caplog.clear()
        open_checkpoint(place, vit="embedded")  # asked for
        assert "another vision tower" in caplog.text and "as asked for" in caplog.text
        with pytest.raises(CheckpointError, match="another vision tower"):
            open_checkpoint(place, vae="embedded")
    caplog.clear()
    open_checkpoint(checkpoint.write_run(tmp_path / "same", encoders=now))
    assert not caplog.text


def test_rows_of_a_run_must_be_the_tokenizers(tmp_path, run, monkeypatch):
    monkeypatch.setattr(ByteTokenizer, "__init__", _larger(ByteTokenizer.__init__))
    with pytest.raises(CheckpointError, match="262 token embeddings.*265 tokens"):
        open_checkpoint(run)


def _larger(init):
    def changed(self):
        init(self)
        self.vocab_size += 3

    return changed


def test_a_config_that_does_not_fit_its_parameters(tmp_path):
    smaller = dataclasses.replace(checkpoint.config().model, num_layers=2)
    config = dataclasses.replace(checkpoint.config(), model=smaller)
    path = checkpoint.write_file(tmp_path / "two.safetensors", config=config)
    with pytest.raises(CheckpointError, match="is missing"):
        load_model(path)


def test_encoders_that_were_moved(tmp_path, file):
    vae = dataclasses.replace(checkpoint.config().vae, weights="/gone/vae.safetensors")
    path = checkpoint.write_file(
        tmp_path / "moved.safetensors", config=dataclasses.replace(checkpoint.config(), vae=vae)
    )
    with pytest.raises(CheckpointError, match="/gone/vae.safetensors"):
        load_model(path)
    assert load_model(path, vae="embedded").encoders.vae


def test_importing_the_package_is_light():
    code = "import sys, mogao_jax; mogao_jax.load; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_context_may_be_longer(file, monkeypatch):
    made = []
    monkeypatch.setattr(pipeline_lib, "make_sampler", lambda *arguments: made.append(arguments))
    usual = checkpoint.config().packing.und_tokens
    long = Request(Document([Text("x" * usual)]))
    model = mogao_jax.load(file)
    with pytest.raises(DocumentError, match=f"max_length={usual + 1}"):
        model.prepare(long)
    model = mogao_jax.load(file, max_length=usual + 1)
    assert model.prepare(long).document.items == long.document.items
    assert [arguments[2] for arguments in made] == [None, usual + 1]
    with pytest.raises(RequestError, match="max_length is 0"):
        mogao_jax.load(file, max_length=0)


# --------------------------------------------------------------------------------------- streams


def fake_model() -> Model:
    return Model(
        modules=dataclasses.make_dataclass("Modules", ["config"])(checkpoint.config()),
        params=None,
        encoders=None,
        tokenizer=ByteTokenizer(),
        name="fake",
        step=1,
        weights="ema",
    )


@pytest.fixture
def make(monkeypatch):
    """A Pipeline on a FakeSampler: (pipeline, sampler)."""

    def build(**arguments):
        sampler = FakeSampler(**arguments)
        monkeypatch.setattr(pipeline_lib, "make_sampler", lambda *arguments: sampler)
        return pipeline_lib.Pipeline(fake_model()), sampler

    return build


def test_pieces_come_in_order_and_the_result_at_the_end(make):
    pipeline, sampler = make()
    stream = pipeline.generate("a red circle", seed=7, num_steps=3, size=(16, 32))
    assert stream.result is None
    pieces = list(stream)
    kinds = [type(p) for p in pieces]
    assert kinds == [str, str, Image, str, str, str]
    assert "".join(pieces[:2]) == "look:  " and "".join(pieces[3:]) == "that is all. "
    assert pieces[2].pixels.shape == (16, 32, 3) and pieces[2].pixels[0, 0, 0] == 7
    assert stream.result.stop == "end"
    assert stream.result.document.items[0] == Text("a red circle", role="user", loss=False)
    assert stream.result.items[1] is pieces[2]
    (request,) = sampler.batches[0]
    assert (request.seed, request.options.num_steps) == (7, 3)
    assert list(stream) == []
    # What came out is a prompt again.
    again = pipeline.generate(stream.result.document, num_steps=1)
    assert sum(isinstance(p, Image) for p in again) == 1


def test_pieces_come_while_the_rest_is_computed(make):
    pipeline, sampler = make(delay=0.02)
    stream = pipeline.generate("go", num_steps=50)
    assert next(stream) == "look: "
    assert sampler.steps_done < 50
    stream.close()


@pytest.mark.parametrize("how", ["close", "drop", "with"])
def test_a_stream_left_alone_ends_soon(make, how):
    pipeline, sampler = make(delay=0.02)
    others = set(threading.enumerate())
    stream = pipeline.generate("go", num_steps=10_000)
    next(stream)
    (thread,) = set(threading.enumerate()) - others
    if how == "close":
        stream.close()
        assert list(stream) == []
    elif how == "drop":
        del stream
        gc.collect()
    else:
        with stream:
            pass
    thread.join(timeout=20)
    assert not thread.is_alive() and sampler.steps_done < 10_000
    # The model can be used again.
    assert len(pipeline.sample([Request(Document([Text("go")]))])) == 1


def test_errors_reach_the_reader(make):
    pipeline, _ = make(fail_at=1)
    stream = pipeline.generate("go")
    with pytest.raises(RuntimeError, match="the fake failed"):
        list(stream)
    assert stream.result is None and list(stream) == []


def test_bad_requests_are_refused_at_the_call(make):
    pipeline, sampler = make()
    threads = threading.active_count()
    with pytest.raises(RequestError, match="num_steps"):
        pipeline.generate("go", num_steps=0)
    with pytest.raises(RequestError, match="guidance_scale"):
        pipeline.generate("go", guidence_scale=1)
    with pytest.raises(RequestError, match="empty"):
        pipeline.generate("  ")
    with pytest.raises(DocumentError, match="Shorten"):
        pipeline.generate("x" * 1000)
    with pytest.raises(DocumentError, match="does not exist"):
        pipeline.sample([Request(Document([Image(path=checkpoint.pathlib.Path("none.png"))]))])
    assert not sampler.batches and threading.active_count() == threads


def test_two_streams_at_once_are_served_one_after_another(make):
    pipeline, sampler = make(delay=0.001)
    streams = [pipeline.generate("go", seed=s, num_steps=5) for s in (1, 2)]
    images = [[p for p in s if isinstance(p, Image)][0].pixels[0, 0, 0] for s in streams]
    assert images == [1, 2]


def test_an_abandoned_program_ends(tmp_path):
    """The main thread ends in the middle of a stream that is still referenced."""
    code = f"""
import sys, time
sys.path[:0] = {[str(p) for p in _TEST_PATHS]!r}
import test_sampling_pipeline as t
t.pipeline_lib.make_sampler = lambda *arguments: t.FakeSampler(delay=0.05)
stream = t.pipeline_lib.Pipeline(t.fake_model()).generate("go", num_steps=10_000)
next(stream)
"""
    result = subprocess.run([sys.executable, "-c", code], timeout=300, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()[-2000:]


_HERE = checkpoint.pathlib.Path(__file__).parent
_TEST_PATHS = (_HERE, _HERE.parent, _HERE.parents[1])


def test_with_the_real_sampler(file):
    """From a file to an image and back into a document; streamed and all at once agree."""
    model = mogao_jax.load(file)
    # Without guidance: one context, so fewer programs to compile.
    options = {"num_steps": 2, "guidance_scale": 1.0, "image_guidance_scale": 1.0,
               "size": (16, 32), "max_images": 1, "draw_first": True}  # fmt: skip
    with model.generate("ab", seed=3, **options) as stream:
        pieces = list(stream)
    assert [type(p) for p in pieces] == [Image] and pieces[0].pixels.shape == (16, 32, 3)
    assert stream.result.stop == "max_images" and model.num_compilations > 0
    document = Document([Text("ab", role="user", loss=False)])
    (result,) = model.sample([Request(document, 3, SamplingOptions(**options))])
    np.testing.assert_array_equal(result.items[0].pixels, pieces[0].pixels)
    (other,) = model.sample([Request(document, 4, SamplingOptions(**options))])
    assert (other.items[0].pixels != pieces[0].pixels).any()
