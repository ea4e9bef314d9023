"""What `port to-hf` writes is loaded as it is, from a folder or from the Hub, and pushed there."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import types

import jax
import numpy as np
import PIL.Image
import pytest
import tiny_checkpoint as checkpoint
import tiny_system as tiny

from mogao_jax.cli.main import main
from mogao_jax.errors import CheckpointError, EnvironmentProblem
from mogao_jax.evals.proportion import Proportion
from mogao_jax.gallery.folder import Folder
from mogao_jax.models.modules import load_encoders
from mogao_jax.porting.to_hf import export
from mogao_jax.sampling.loading import load_model, open_checkpoint
from mogao_jax.sequence.document import Document, Image, Text
from mogao_jax.training.init_from import load_initial_params
from mogao_jax.worlds.shapes.evals import saving
from mogao_jax.worlds.shapes.evals.scores import OVERALL, Row, Scores


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return checkpoint.write_file(folder / "m.safetensors", None, dtype="float32")


@pytest.fixture(scope="module")
def folder(file):
    """A whole model as `port to-hf` writes it, in several shards."""
    out = file.parent / "hf"
    export(file, out, dtype="float32", shard_bytes=200_000)
    return out


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_folder_is_the_same_model(file, folder):
    theirs, ours = load_model(folder), load_model(file)
    equal(theirs.params, ours.params)
    equal(theirs.encoders, ours.encoders)
    equal(ours.encoders, load_encoders(ours.modules))
    assert (theirs.step, theirs.weights) == (ours.step, ours.weights) == (checkpoint.STEP, "ema")
    with pytest.raises(CheckpointError, match="holds ema parameters only"):
        open_checkpoint(folder, weights="raw")


def test_training_starts_from_a_folder(folder):
    config = dataclasses.replace(
        checkpoint.config(), train=dataclasses.replace(tiny.CONFIG.train, init_from=str(folder))
    )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), checkpoint.shapes()
    )
    equal(load_initial_params(config, abstract, tiny.TOKENIZER), checkpoint.params())


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "vae/config.json", "one shard"])
def test_a_file_is_missing(folder, tmp_path, name):
    copy = tmp_path / "copy"
    shard = sorted(folder.glob("model-*.safetensors"))[1].name
    gone = shard if name == "one shard" else name
    for source in folder.rglob("*.*"):
        if source.is_file() and source.relative_to(folder).as_posix() != gone:
            target = copy / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    if name == "vae/config.json":  # the model's own config says the same
        equal(load_model(copy).encoders, load_model(folder).encoders)
        return
    with pytest.raises(CheckpointError) as e:
        load_model(copy)
    assert str(copy) in str(e.value) and gone.split(".")[0] in str(e.value)


class FakeHub:
    """huggingface_hub as far as it is used, with one model, ORG/tiny."""

    def __init__(self, folder: pathlib.Path | None = None, error: Exception | None = None):
        self.folder, self.error, self.pushed = folder, error, []

    def snapshot_download(self, name, *, allow_patterns):
        assert not any("pickle" in p or ".bin" in p or ".pt" in p for p in allow_patterns)
        if self.error:
            raise self.error
        return str(self.folder)

    def create_repo(self, name, *, private, exist_ok):
        if self.error:
            raise self.error
        assert exist_ok
        self.pushed.append((name, private))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.pushed.append((repo_id, pathlib.Path(folder_path), commit_message))
        return types.SimpleNamespace(repo_url=f"hub:{repo_id}")


def use(monkeypatch, fake):
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)


def test_a_model_of_the_hub(monkeypatch, folder, file):
    use(monkeypatch, FakeHub(folder))
    equal(load_model("ORG/tiny").params, load_model(file).params)


def test_a_place_that_is_no_name_of_the_hub(monkeypatch, tmp_path):
    use(monkeypatch, FakeHub(error=AssertionError("asked the Hub")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/mine", "./a/b", "/nowhere/at", "a/b/c", "mine"):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load_model(name)


class LocalEntryNotFoundError(Exception):
    """As huggingface_hub names it."""


class RepositoryNotFoundError(Exception):
    """As huggingface_hub names it."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LocalEntryNotFoundError("x"), "HF_HUB_OFFLINE"),
        (RepositoryNotFoundError("404"), "no such model, or it is private"),
        (OSError("no route"), "OSError: no route"),
    ],
)
def test_the_hub_cannot_give_it(monkeypatch, capsys, error, words):
    use(monkeypatch, FakeHub(error=error))
    assert main(["sample", "--checkpoint", "ORG/tiny", "a red circle"]) == 2
    said = capsys.readouterr().err
    assert "'ORG/tiny'" in said and words in said and said.count("\n") == 1


def test_without_the_library(monkeypatch):
    use(monkeypatch, None)
    with pytest.raises(EnvironmentProblem, match=r'pip install "mogao_jax\[hub\]"'):
        load_model("ORG/tiny")


def test_push(monkeypatch, capsys, folder, tmp_path):
    fake = FakeHub()
    use(monkeypatch, fake)
    assert main(["push", str(folder), "ORG/tiny", "--private"]) == 0
    assert fake.pushed == [
        ("ORG/tiny", True), ("ORG/tiny", folder, "Upload a Mogao model")
    ]  # fmt: skip
    assert capsys.readouterr().out == "hub:ORG/tiny\n"
    assert main(["push", str(tmp_path), "ORG/tiny"]) == 2
    assert "no folder of a whole Mogao model" in capsys.readouterr().err
    assert main(["push", str(folder), "tiny"]) == 2
    assert "ORG/NAME" in capsys.readouterr().err
    use(monkeypatch, FakeHub(error=RepositoryNotFoundError("404")))
    assert main(["push", str(folder), "ORG/tiny"]) == 2
    assert "was not pushed" in capsys.readouterr().err


def test_the_card_shows_what_the_run_has(tmp_path):
    run = checkpoint.write_run(tmp_path / "run")
    (run / "config.json").write_text("{}")
    pixels = np.full((16, 16, 3), 7, np.uint8)
    told = Document((Text("a | red <circle>", "user", loss=False), Image(pixels=pixels)), id="x")
    samples = Folder(run / "samples")
    name = samples.write_document(1, told).name
    samples.write_run({"documents": [{"file": name, "given": 1}, {"file": "../x.json"}]})
    rows = (Row("t2i", OVERALL, "right", Proportion(3, 4)),)
    saving.save(Scores("m", "own", rows, {"world": "3 shapes"}), run)
    export(run, tmp_path / "hf")
    card = (tmp_path / "hf/README.md").read_text()
    assert r"| a \| red &lt;circle> | ![](images/001-1.png) |" in card
    image = np.asarray(PIL.Image.open(tmp_path / "hf/images/001-1.png"))
    np.testing.assert_array_equal(image, pixels)
    header, rest = card.removeprefix("---\n").split("\n---\n", 1)
    assert "value: 75.0" in header and "### Text to image" in rest and "(3 shapes)" in rest
    assert json.loads(header.split("- name: ")[1].splitlines()[0]) == checkpoint.config().name
