from __future__ import annotations

import importlib.metadata

import pytest

from mogao_jax.errors import EnvironmentProblem
from mogao_jax.tools.plan import topology
from mogao_jax.tools.plan.topology import parse


@pytest.mark.parametrize(
    ("name", "slices", "chip", "chips", "num_slices"),
    [
        ("v5p:4x4x4", 1, "v5p", 64, 1),
        ("v5p:4x4x4", 2, "v5p", 128, 2),
        ("v5p-64", 1, "v5p", 64, 1),
        ("v5p-512", 1, "v5p", 512, 1),
        ("v5e-256", 1, "v5e", 256, 1),
        ("v6e:8x8", 1, "v6e", 64, 1),
        ("8xH100", 1, "H100", 8, 1),
        ("64xh100", 1, "H100", 64, 8),
        ("H200", 1, "H200", 1, 1),
    ],
)
def test_names_of_machines(name, slices, chip, chips, num_slices):
    found = parse(name, slices)
    assert (found.chip.name, found.num_chips, found.num_slices) == (chip, chips, num_slices)
    assert found.compiles == name.startswith("v")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p-4x4x4", "Did you mean 'v5p:4x4x4'"),
        ("v9z:2x2", "not known"),
        ("12xH100", "whole nodes of 8, such as 16xH100"),
        ("8xA1", "GPUs, such as 8xH100"),
        ("v5e:0x4", "without chips"),
        ("v9z:2x2", r"slices of TPUs, v5e:16x16, v5p:8x8x8, v6e:16x16 \("),  # not v4, tpu7x
        ("", "not known"),
    ],
)
def test_names_that_are_not_known_name_those_that_are(name, message):
    with pytest.raises(EnvironmentProblem, match=message):
        parse(name)


def test_slices_of_gpus_are_refused_with_the_name_of_as_many():
    with pytest.raises(EnvironmentProblem, match="--num-slices is 2.*such as --topology 16xH100"):
        parse("8xH100", 2)
    with pytest.raises(EnvironmentProblem, match="--topology 32xH200"):
        parse("16xH200", 2)


def _versions(monkeypatch, libtpu):
    def version(package):
        if package == "libtpu" and libtpu is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return libtpu if package == "libtpu" else "0.10.2"

    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda _: ["numpy", 'libtpu==0.0.42.*; extra == "tpu"']
    )


def test_a_compiler_that_is_missing_or_another_is_said_so(monkeypatch):
    _versions(monkeypatch, "0.0.42.1")
    topology.check_compiler()
    _versions(monkeypatch, "0.0.4")
    with pytest.raises(EnvironmentProblem, match=r"0\.0\.4, but jax 0\.10\.2 goes with 0\.0\.42"):
        topology.check_compiler()
    _versions(monkeypatch, None)
    with pytest.raises(EnvironmentProblem, match=r"not installed: pip install 'libtpu==0\.0\.42"):
        topology.check_compiler()


def test_this_jax_says_which_compiler_it_wants():
    assert topology.wanted_version() not in ("", "*")
